"""Measuring strategies on problems with known answers.

``data``: problems of the gym and of files. ``runner``: strategies over problems, durable and resumable, into
``results``. ``summary``: accuracy, paired differences and cost with intervals, by ``statistics``. ``report`` and
``plot``: for readers. ``gym``: the generated, verifiable skills.
"""
