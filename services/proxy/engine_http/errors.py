"""Why there is no whole response; str() of an error tells the reason.

HttpError
├── Unconnected          no connection: the server cannot have seen the request
│   ├── Refused          nobody listens there, or nobody who can prove its name
│   ├── ConnectTimeout   no connection in time
│   └── Exhausted        this host lacks what a connection takes, which says nothing about the server
├── Disconnected         the connection ended too soon
└── Malformed            what arrived is not HTTP, or too much of it
"""


class HttpError(Exception):
    pass


class Unconnected(HttpError):
    pass


class Refused(Unconnected):
    pass


class ConnectTimeout(Unconnected):
    pass


class Exhausted(Unconnected):
    pass


class Disconnected(HttpError):
    pass


class Malformed(HttpError):
    pass
