"""What holds for every tier: no test judges its own speed, which is the machine's of the hour."""

from hypothesis import settings

settings.register_profile("larder", deadline=None)
settings.load_profile("larder")
