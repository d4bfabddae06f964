"""Model servers: one version, or whichever is champion."""
