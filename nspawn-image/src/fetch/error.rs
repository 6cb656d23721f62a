//! What can go wrong with a download.

use std::io;

use crate::reference::ImageUrl;

/// A failed download: the URL, redacted, and what happened.
#[derive(Debug, thiserror::Error)]
#[error("cannot download {url}")]
pub struct DownloadError {
    /// The URL asked for; after redirects the one that failed.
    pub url: ImageUrl,
    /// What happened.
    #[source]
    pub reason: DownloadReason,
}

/// What happened to a download.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadReason {
    /// The host's name has no address.
    #[error("the host \"{0}\" is not known")]
    UnknownHost(String),
    /// Nothing listens there.
    #[error("the connection to \"{0}\" was refused")]
    Refused(String),
    /// No connection for another reason.
    #[error("cannot connect to \"{host}\": {reason}")]
    Connect {
        /// The host.
        host: String,
        /// The innermost cause.
        reason: String,
    },
    /// The server's certificate or the encryption itself was not accepted.
    #[error("no secure connection to \"{host}\": {reason}")]
    Tls {
        /// The host.
        host: String,
        /// The innermost cause.
        reason: String,
    },
    /// Nothing came for this long.
    #[error("the server sent nothing for {0} s")]
    Stalled(u64),
    /// No connection within this time.
    #[error("no connection within {0} s")]
    ConnectTimeout(u64),
    /// 404 or 410.
    #[error("the server has no such file (HTTP {0})")]
    NotFound(u16),
    /// 401, 403 or 407.
    #[error("the server refuses access (HTTP {0})")]
    Denied(u16),
    /// 5xx.
    #[error("the server failed (HTTP {0})")]
    Server(u16),
    /// Any other answer that holds no file.
    #[error("the server answered with HTTP {0}, which holds no file")]
    Status(u16),
    /// Too many redirects, or a circle of them.
    #[error("more than {0} redirects")]
    Redirects(usize),
    /// A redirect from https to http.
    #[error("the server redirects from https to http")]
    Downgrade,
    /// The body ended early.
    #[error("the body was cut short: {received} of {expected} bytes arrived")]
    CutShort {
        /// Bytes promised.
        expected: u64,
        /// Bytes received.
        received: u64,
    },
    /// Larger than allowed.
    #[error("the file is larger than the {limit} bytes allowed")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// An answer that breaks HTTP.
    #[error("the answer makes no sense: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The HTTP client could not be set up.
    #[error("cannot set up the connection: {0}")]
    Setup(String),
    /// The network thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[from] io::Error),
    /// The file is wanted without the network.
    #[error("it is not in the store, and the network must not be used")]
    Offline,
}

impl DownloadError {
    /// Whether another URL would help, and not another network.
    pub(crate) fn is_input(&self) -> bool {
        matches!(
            self.reason,
            DownloadReason::NotFound(_) | DownloadReason::TooLarge { .. }
        )
    }

    /// Whether the same request may have an answer soon.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(
            self.reason,
            DownloadReason::Refused(_)
                | DownloadReason::Connect { .. }
                | DownloadReason::ConnectTimeout(_)
                | DownloadReason::Stalled(_)
                | DownloadReason::Broken(_)
                | DownloadReason::Server(_)
        )
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match &self.reason {
            DownloadReason::UnknownHost(_) => "check the host's name and this machine's DNS",
            DownloadReason::Refused(_) => "check the port, and that the server runs",
            DownloadReason::Connect { .. } | DownloadReason::ConnectTimeout(_) => {
                "check the network, or set a proxy"
            }
            DownloadReason::Tls { .. } => {
                "check this machine's clock and its certificates (ca-certificates)"
            }
            DownloadReason::NotFound(_) => "check the URL: publishers remove old builds",
            DownloadReason::Denied(_) => "the URL needs a user and password or a fresh token",
            DownloadReason::Server(_) | DownloadReason::Status(_) => {
                "try again later, or another mirror"
            }
            DownloadReason::Stalled(_)
            | DownloadReason::CutShort { .. }
            | DownloadReason::Broken(_) => {
                "pull again: it goes on where it stopped if the server allows that"
            }
            DownloadReason::Redirects(_) | DownloadReason::Downgrade => "give the final URL",
            DownloadReason::TooLarge { .. } => "raise the limit if the file is really meant",
            DownloadReason::Offline => "pull it once with the network",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
