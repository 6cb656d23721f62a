//! Tests that run as anybody.

mod http_server;
