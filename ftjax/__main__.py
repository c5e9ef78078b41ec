"""The program: `ftjax`, or `python -m ftjax`. What the process needs is settled before anything is imported."""

from ftjax.launch import collect_seldom, ending_at_once, keep_programs, with_huge_pages, without_tpu


def program() -> None:
    """The command line in a process that has its memory in huge pages and keeps what it compiles."""
    with_huge_pages()
    keep_programs()
    without_tpu()
    collect_seldom()
    with ending_at_once():
        from ftjax.cli import main

        main()


if __name__ == "__main__":
    program()
