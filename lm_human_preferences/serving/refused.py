"""What a server answers to a request that it does not grant."""


class Refused(Exception):
    """A request that is not granted, with its HTTP status and a line for whoever made it."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status
