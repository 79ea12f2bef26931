"""A question in, a better answer out, at a known cost: the embedded model, no server, no download."""

import asyncio

import stratagem as sg

QUESTION = (
    "Ana has 12 apples. Ben has 7 more apples than Ana. Cal has twice as many apples as Ben. "
    "How many apples does Cal have?"
)


async def main() -> None:
    for strategy in (sg.ChainOfThought(), sg.SelfConsistency(n=16), sg.BestOfN(n=16)):
        answer = await sg.solve(QUESTION, strategy)
        print(f"{strategy.kind:17} {answer.value:>5}  {answer.usage.tokens} tokens, {answer.seconds:.2f} s")


asyncio.run(main())
