"""The narrator and the governor that slows it down first."""
