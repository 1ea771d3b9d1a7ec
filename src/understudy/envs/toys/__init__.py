"""The bundled toy environments."""
