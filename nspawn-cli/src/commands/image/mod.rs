//! `nspawn-run image`: the image store.

mod amount;
mod convert;
mod fetch;
mod inspect;
mod list;
mod prune;
mod pull;
mod registry;
mod remove;
mod verify;

use clap::{Args, Subcommand};
pub(crate) use fetch::FetchOptions;
use nspawn_image::ImageRef;
use registry::RegistryOptions;

use crate::error::CommandError;
use crate::options::Global;
use crate::output::Output;

/// Fetch, inspect, check, convert and remove images
#[derive(Args, Debug)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Subcommand, Debug)]
enum ImageCommand {
    Pull(Box<pull::PullArgs>),
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    Inspect(inspect::InspectArgs),
    Verify(verify::VerifyArgs),
    #[command(visible_alias = "rm")]
    Remove(remove::RemoveArgs),
    Prune(prune::PruneArgs),
    Convert(convert::ConvertArgs),
}

/// Runs the command.
pub(crate) fn run(args: &ImageArgs, global: &Global, out: &mut Output) -> Result<(), CommandError> {
    match &args.command {
        ImageCommand::Pull(args) => pull::run(args, global, out),
        ImageCommand::List(args) => list::run(args, global, out),
        ImageCommand::Inspect(args) => inspect::run(args, global, out),
        ImageCommand::Verify(args) => verify::run(args, global, out),
        ImageCommand::Remove(args) => remove::run(args, global),
        ImageCommand::Prune(args) => prune::run(args, global, out),
        ImageCommand::Convert(args) => convert::run(args, global),
    }
}

/// The proxy that the environment names for a URL, as curl(1) reads it.
pub(crate) fn proxy(reference: &ImageRef) -> Option<String> {
    let (host, secure) = match reference {
        ImageRef::Url(url) => (url.host(), url.to_string().starts_with("https:")),
        // one on this host is asked directly
        ImageRef::Oci(image) if !image.is_loopback() => (image.host(), true),
        _ => return None,
    };
    let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let exempt = get("no_proxy")
        .or_else(|| get("NO_PROXY"))
        .unwrap_or_default();
    let covers = |entry: &str| {
        let entry = entry.trim().trim_start_matches('.');
        entry == "*"
            || (!entry.is_empty() && (host == entry || host.ends_with(&format!(".{entry}"))))
    };
    if exempt.split(',').any(covers) {
        return None;
    }
    // upper-case HTTP_PROXY is not read: a web server sets it from a request's header
    let by_scheme = if secure {
        get("https_proxy").or_else(|| get("HTTPS_PROXY"))
    } else {
        get("http_proxy")
    };
    by_scheme
        .or_else(|| get("all_proxy"))
        .or_else(|| get("ALL_PROXY"))
}
