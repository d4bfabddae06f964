#!/bin/sh
exec node /opt/s3/s3.js
