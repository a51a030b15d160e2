"""Find and decode audio files: any common format, rate and number of channels → mono float32."""

from hear_m2d.audio.find import AUDIO_SUFFIXES, find_audio
from hear_m2d.audio.read import read_audio, read_sound
from hear_m2d.audio.types import AudioError, Reason, Sound

__all__ = ["AUDIO_SUFFIXES", "AudioError", "Reason", "Sound", "find_audio", "read_audio", "read_sound"]
