"""`make image-check`: replays the Dockerfile without a container engine, in an empty folder, and starts the result as
an unprivileged user on a tree that nobody may write to."""
