//! Tests that run as anybody.

mod connections;
mod documents;
mod http_server;
mod https;
mod images;
mod killed;
mod together;
mod usage;
mod verify;
