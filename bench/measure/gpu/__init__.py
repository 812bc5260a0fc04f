"""The first minutes on a GPU: facts measured in order of worth (`program`), a page made from them, a kit to bring.

`program` gives each section its seconds; `sections` says what is measured; `helper` is a process that may die;
`at_once` steps in several processes; `sprint` makes real results; `judge` reads the facts, `page` writes them out.
"""
