"""Stages that follow one another without hands: what each takes over, which gates it must pass, and what is done already."""
