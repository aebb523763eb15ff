"""Tell a database that is down, starting or full from one that refuses, by what its driver raised."""

_STATES = ("08", "53", "55P03", "57P01", "57P02", "57P03")
"""SQLSTATEs, or their classes: the connection broke, too little of something, a lock not had in time,
shut down, crashed, starting (https://www.postgresql.org/docs/current/errcodes-appendix.html)."""
_FOR_A_WHILE = (
    "the database system is",
    "terminating connection due to administrator command",
    "too many clients",
    "too many connections",
    "no more connections allowed",
    "remaining connection slots",
)
"""With these a PostgreSQL server, or a pooler before it, ends a connection that it would have taken otherwise."""
_MISTAKES = (
    "no password supplied",
    "authentication",
    "certificate",
    "SSL was required",
    "No address associated",
    "invalid ",
)
"""With these PostgreSQL's own client refuses to go on, whatever the server does."""
_MYSQL = (1040, 1053, 2002, 2003, 2006, 2013)
"""Too many connections, shutting down, and four ways of finding nobody
(https://dev.mysql.com/doc/mysql-errors/8.0/en/)."""
_SQLITE_BUSY = 5


def is_database_away(error: BaseException) -> bool:
    """Whether the same login and the same query may succeed a while later.

    Neither SQLAlchemy nor a driver is imported to ask.
    """
    # SQLAlchemy's word for a connection that broke, from each dialect's own list.
    if getattr(error, "connection_invalidated", False) is True:
        return True
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(state, str):
        return state.startswith(_STATES)
    if _is_operational(error, "psycopg"):
        return _postgresql_passes(str(error))
    if _is_operational(error, "pymysql", "MySQLdb", "mysql", "mariadb"):
        number = getattr(error, "errno", None) or next(iter(error.args), None)
        return number in _MYSQL
    code = getattr(error, "sqlite_errorcode", None)
    # The low byte: SQLite's extended codes say more in the others.
    return isinstance(code, int) and code & 0xFF == _SQLITE_BUSY


def _postgresql_passes(said: str) -> bool:
    """A login that is refused has no SQLSTATE in the client library; the server's words begin with FATAL."""
    if "FATAL" in said:
        return any(words in said for words in _FOR_A_WHILE)
    return not any(words in said for words in _MISTAKES)


def _is_operational(error: BaseException, *drivers: str) -> bool:
    return any(
        base.__name__ == "OperationalError" and base.__module__.startswith(drivers)
        for base in type(error).__mro__
    )
