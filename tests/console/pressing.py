"""A page as a browser reads it: its text, its links, and its forms, whose buttons can be pressed."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlsplit

import httpx

from tests.console.browsing import Person


@dataclass
class _Form:
    action: str
    fields: dict[str, str] = field(default_factory=dict)
    post: bool = True


@dataclass
class _Button:
    label: str
    form: _Form | str | None
    fields: dict[str, str]


class Read(HTMLParser):
    """What stands on a page."""

    def __init__(self, page: httpx.Response) -> None:
        super().__init__()
        self.links: dict[str, str] = {}
        self.buttons: list[_Button] = []
        self.hrefs: list[str] = []
        self.boxes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._named: dict[str, _Form] = {}
        self._form: _Form | None = None
        self._link: tuple[str, int] | None = None
        self._select = ""
        self._begun = 0
        self.feed(page.text)

    @property
    def text(self) -> str:
        """All of it that is text."""
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in given}
        if tag == "form":
            self._form = _Form(attributes["action"], {}, attributes["method"] == "post")
            self._named[attributes.get("id", "")] = self._form
        elif tag == "a":
            self._link = attributes.get("href", ""), len(self.words)
            self.hrefs.append(self._link[0])
        elif tag == "select":
            self._select = attributes["name"]
        elif tag == "option" and self._form is not None and ("selected" in attributes):
            self._form.fields[self._select] = attributes.get("value", "")
        elif tag == "button":
            name = attributes.get("name")
            said = {name: attributes.get("value", "")} if name else {}
            self.buttons.append(_Button("", attributes.get("form") or self._form, said))
            self._begun = len(self.words)
        elif tag == "input":
            self._input(attributes)

    def _input(self, attributes: dict[str, str]) -> None:
        if attributes.get("type") == "checkbox":
            self.boxes.append((attributes["name"], attributes.get("value", "on")))
        elif self._form is not None and "name" in attributes:
            self._form.fields[attributes["name"]] = attributes.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "a" and self._link is not None:
            href, begun = self._link
            self.links.setdefault(" ".join(" ".join(self.words[begun:]).split()), href)
        elif tag == "button":
            self.buttons[-1].label = " ".join(" ".join(self.words[self._begun :]).split())

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def form_of(self, label: str) -> tuple[_Form, dict[str, str]]:
        """The form of the first button with this label, and the fields that pressing it sends."""
        for button in self.buttons:
            if button.label.startswith(label):
                form = self._named[button.form] if isinstance(button.form, str) else button.form
                assert form is not None, f"{label} belongs to no form"
                return form, form.fields | button.fields
        raise AssertionError(f"no button {label!r} among {[button.label for button in self.buttons]}")


async def press(person: Person, page: httpx.Response, label: str, **more: str) -> httpx.Response:
    """What a press of this button leads to, with these fields filled in; the page after a redirect."""
    form, fields = Read(page).form_of(label)
    assert form.post
    answer = await person.post(form.action, **(fields | more))
    return await followed(person, answer)


async def followed(person: Person, answer: httpx.Response) -> httpx.Response:
    """The page that an answer leads to, if it leads to one."""
    if answer.status_code != 303:
        return answer
    page = await person.get(answer.headers["Location"])
    assert page.status_code == 200, page.text
    return page


async def walk(person: Person, path: str, begin: str) -> list[str]:
    """The links that begin so, of a list and all pages after it, in their order; no page may show what another did."""
    found: list[str] = []
    onward: str | None = path
    while onward is not None:
        page = await person.get(onward)
        assert page.status_code == 200, page.text
        read = Read(page)
        hrefs = [href for href in read.hrefs if urlsplit(href).path.startswith(begin)]
        found += list(dict.fromkeys(urlsplit(href).path for href in hrefs))
        onward = read.links.get("Next page")
    return found
