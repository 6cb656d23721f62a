//! placeholder
use crate::error::Result;
/// t
#[derive(clap::Args, Debug)]
pub(crate) struct TestArgs {}
pub(crate) fn run(_: &TestArgs) -> Result<()> {
    super::fixture::ensure_all()?;
    super::fuzz::run_all(1)
}
