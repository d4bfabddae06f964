"""Arrays on disk that trials share: decoded pixels, and features of frozen backbones."""
