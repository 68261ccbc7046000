"""Why a run ended. Pure."""
