//! Small answers held in memory: checksum files, signatures, manifests.

use reqwest::header::HeaderMap;

use super::error::{DownloadError, DownloadReason};
use super::transfer::{self, Request};
use crate::error::ImageError;
use crate::options::PullOptions;
use crate::reference::ImageUrl;

/// A whole answer, whatever its status.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The body of an answer with status 200; any other status is the error that it would be for a download.
    pub(crate) fn found(self, url: &ImageUrl) -> Result<Vec<u8>, ImageError> {
        if self.status == 200 {
            return Ok(self.body);
        }
        Err(DownloadError {
            url: url.clone(),
            reason: transfer::refusal(self.status),
        }
        .into())
    }
}

/// Asks for `url` with `headers` and answers what came, of at most `limit` bytes; redirects, time-outs, proxy and
/// cancel as for a download.
pub(crate) fn get(
    url: &ImageUrl,
    headers: &HeaderMap,
    limit: u64,
    options: &PullOptions,
) -> Result<Answer, ImageError> {
    send(&Request::plain(url, headers, options), limit)
}

/// As [`get`], but posts a form, which is not sent on to where a redirect leads.
pub(crate) fn post(
    url: &ImageUrl,
    form: &str,
    limit: u64,
    options: &PullOptions,
) -> Result<Answer, ImageError> {
    let mut request = Request::plain(url, &HeaderMap::new(), options);
    request.form = Some(form.to_owned());
    send(&request, limit)
}

fn send(request: &Request, limit: u64) -> Result<Answer, ImageError> {
    // A thread of its own: a runtime cannot be entered from within a caller's.
    let run = || -> Result<Option<Answer>, ImageError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| request.fail(DownloadReason::Thread(error)))?;
        Ok(runtime.block_on(transfer::whole(request, limit))?)
    };
    let answer = std::thread::scope(|scope| -> Result<Option<Answer>, ImageError> {
        let thread = std::thread::Builder::new()
            .name("fetch".to_owned())
            .spawn_scoped(scope, run)
            .map_err(|error| request.fail(DownloadReason::Thread(error)))?;
        thread.join().unwrap_or_else(|_| {
            let reason = DownloadReason::Protocol("the network thread ended".to_owned());
            Err(request.fail(reason).into())
        })
    })?;
    answer.ok_or(ImageError::Cancelled)
}
