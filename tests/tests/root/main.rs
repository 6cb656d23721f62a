//! Tests that boot machines, or look at what only root could make.

mod detached;
mod exec;
mod fixture;
mod images;
mod results;
mod systemd_host;
