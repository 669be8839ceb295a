"""The console: pages for people, made on the server.

`visiting` is what a page is given and how it answers, `signing_in` who may see it, `frame` makes routes of all of it;
every other module is some pages, each with what it lists in `PAGES` and `ACTIONS`. Templates are in `pages/`. Nothing
here decides anything: actions call the flows that the API calls.
"""
