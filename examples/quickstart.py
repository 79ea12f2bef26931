"""A question in, a better answer out, at a known cost: the embedded model, no server, no download."""

import asyncio

import stratagem as sg

QUESTION = (
    "A bakery makes 14 rolls an hour. It works 9 hours a day for 2 days. "
    "The rolls are packed in bags of 2. How many bags do they fill?"
)


async def main() -> None:
    for strategy in (sg.ChainOfThought(), sg.SelfConsistency(n=16), sg.BestOfN(n=16)):
        answer = await sg.solve(QUESTION, strategy)
        print(f"{strategy.kind:17} {answer.value:>5}  {answer.usage.tokens} tokens, {answer.seconds:.2f} s")


asyncio.run(main())
