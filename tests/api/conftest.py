from tests.records import record

__all__ = ["record"]
