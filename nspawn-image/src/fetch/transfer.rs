//! The network's side of a download: one thread, one private runtime, one request with its redirects.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
};
use reqwest::redirect::Policy;
use reqwest::{Client, Proxy, RequestBuilder, Response};

use super::Validators;
use super::error::{DownloadError, DownloadReason};
use super::segments::{self, Whole};
use super::small::Answer;
use super::tls;
use crate::limits::Cancel;
use crate::options::PullOptions;
use crate::reference::ImageUrl;

/// Redirects followed. Source: what curl's users and browsers settled on lies between 10 and 50; mirrors use two.
const REDIRECTS: usize = 10;
/// Chunks that wait between the network and the disk; each is at most some hundred KiB.
const QUEUE: usize = 8;
/// How often the thread looks whether anybody still waits for it.
const TICK: Duration = Duration::from_millis(200);
const USER_AGENT: &str = concat!("nspawn-image/", env!("CARGO_PKG_VERSION"));

/// What to ask for.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) url: ImageUrl,
    /// The first byte wanted.
    pub(super) from: u64,
    /// The last one wanted; `None` for all. Only with `if_range`.
    pub(super) to: Option<u64>,
    pub(super) if_range: Option<String>,
    /// Send nothing if the server still has this.
    pub(super) unless: Option<Validators>,
    pub(super) connect_timeout: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) proxy: Option<String>,
    pub(super) cancel: Cancel,
    /// Sent with the request, such as `Accept` and `Authorization`. A redirect to another host gets no credentials.
    pub(super) headers: HeaderMap,
    /// Connections that a long transfer may use at once.
    pub(super) connections: usize,
    /// A form to post; such a request is not redirected, as its body may be a secret.
    pub(super) form: Option<String>,
}

/// The head of an answer that holds a body.
pub(super) struct Head {
    /// The first byte of the body in the file.
    pub(super) start: u64,
    /// The whole file's length, in bytes, where it is known.
    pub(super) total: Option<u64>,
    pub(super) validators: Validators,
}

/// What arrives, in this order: one of the first three, chunks, and an end; or a failure at any time.
pub(super) enum Event {
    Head(Head),
    NotModified,
    /// Nothing stands at or after the byte asked for; the whole length, in bytes, where it is told.
    RangeRefused(Option<u64>),
    Chunk(Bytes),
    End,
    Failed(DownloadError),
}

/// Starts the transfer. It ends by itself soon after the receiver is dropped.
pub(super) fn start(request: Request) -> io::Result<Receiver<Event>> {
    let (sender, receiver) = sync_channel(QUEUE);
    std::thread::Builder::new()
        .name("download".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let result = match runtime {
                Ok(runtime) => runtime.block_on(transfer(&request, &sender)),
                Err(error) => Err(request.fail(DownloadReason::Thread(error))),
            };
            if let Err(error) = result {
                let _ = sender.send(Event::Failed(error));
            }
        })?;
    Ok(receiver)
}

impl Request {
    /// A request for the whole of `url`.
    pub(super) fn plain(url: &ImageUrl, headers: &HeaderMap, options: &PullOptions) -> Self {
        Self {
            url: url.clone(),
            from: 0,
            to: None,
            if_range: None,
            unless: None,
            connect_timeout: options.connect_timeout,
            idle_timeout: options.idle_timeout,
            proxy: options.proxy.clone(),
            cancel: options.cancel.clone(),
            headers: headers.clone(),
            connections: options.connections,
            form: None,
        }
    }

    pub(super) fn fail(&self, reason: DownloadReason) -> DownloadError {
        DownloadError {
            url: self.url.clone(),
            reason,
        }
    }

    /// Waits for `future`, at most `limit` without an answer; `None` when the call was cancelled.
    async fn patiently<T>(
        &self,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Option<Result<T, ()>> {
        let mut future = pin!(future);
        let mut waited = Duration::ZERO;
        loop {
            match tokio::time::timeout(TICK, &mut future).await {
                Ok(value) => return Some(Ok(value)),
                Err(_) if self.cancel.is_cancelled() => return None,
                Err(_) => waited += TICK,
            }
            if waited >= limit {
                return Some(Err(()));
            }
        }
    }

    fn headers(&self, mut builder: RequestBuilder) -> RequestBuilder {
        // Bytes are hashed as they are published: a server must not compress them on the way.
        builder = builder
            .headers(self.headers.clone())
            .header(ACCEPT_ENCODING, "identity");
        if let Some(known) = &self.unless {
            for (name, value) in [
                (IF_NONE_MATCH, &known.etag),
                (IF_MODIFIED_SINCE, &known.last_modified),
            ] {
                if let Some(value) = value {
                    builder = builder.header(name, value);
                }
            }
        }
        if let Some(validator) = &self.if_range {
            let last = self.to.map(|to| to.to_string()).unwrap_or_default();
            builder = builder
                .header(RANGE, format!("bytes={}-{}", self.from, last))
                .header(IF_RANGE, validator);
        }
        builder
    }
}

/// Sends the request and waits for the head of the answer; `None` when the call was cancelled.
pub(super) async fn send(
    client: &Client,
    request: &Request,
) -> Result<Option<Response>, DownloadError> {
    let url = request.url.secret().clone();
    let builder = match &request.form {
        None => client.get(url),
        Some(form) => client
            .post(url)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.clone()),
    };
    let sent = request.headers(builder).send();
    // Connecting has its own limit; the rest of the way to a head counts as silence.
    let limit = request.connect_timeout + request.idle_timeout;
    match request.patiently(limit, sent).await {
        None => Ok(None),
        Some(Err(())) => Err(request.fail(DownloadReason::Stalled(request.idle_timeout.as_secs()))),
        Some(Ok(Err(error))) => Err(explain(request, &error)),
        Some(Ok(Ok(response))) => Ok(Some(response)),
    }
}

/// The whole answer to a request, whatever its status, with at most `limit` bytes of body.
pub(super) async fn whole(request: &Request, limit: u64) -> Result<Option<Answer>, DownloadError> {
    let client = client(request).map_err(|reason| request.fail(reason))?;
    let Some(mut response) = send(&client, request).await? else {
        return Ok(None);
    };
    let url = ImageUrl::from_url(response.url().clone());
    let fail = |reason| DownloadError {
        url: url.clone(),
        reason,
    };
    let mut body = Vec::new();
    loop {
        match next_chunk(request, &mut response).await {
            None => return Ok(None),
            Some(Err(reason)) => return Err(fail(reason)),
            Some(Ok(None)) => break,
            Some(Ok(Some(bytes))) => {
                if (body.len() + bytes.len()) as u64 > limit {
                    return Err(fail(DownloadReason::TooLarge { limit }));
                }
                body.extend_from_slice(&bytes);
            }
        }
    }
    Ok(Some(Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body,
    }))
}

/// The next bytes of a body, `Ok(None)` at its end; `None` when the call was cancelled.
pub(super) async fn next_chunk(
    request: &Request,
    response: &mut Response,
) -> Option<Result<Option<Bytes>, DownloadReason>> {
    let limit = request.idle_timeout;
    Some(match request.patiently(limit, response.chunk()).await? {
        Err(()) => Err(DownloadReason::Stalled(limit.as_secs())),
        Ok(Err(error)) => Err(DownloadReason::Broken(innermost(&error))),
        Ok(Ok(chunk)) => Ok(chunk),
    })
}

async fn transfer(request: &Request, sender: &SyncSender<Event>) -> Result<(), DownloadError> {
    let client = client(request).map_err(|reason| request.fail(reason))?;
    let Some(mut response) = send(&client, request).await? else {
        return Ok(());
    };
    let url = ImageUrl::from_url(response.url().clone());
    let fail = |reason| DownloadError {
        url: url.clone(),
        reason,
    };
    let event = head(request, &response).map_err(fail)?;
    let Event::Head(head) = &event else {
        let _ = sender.send(event); // the receiver may be gone
        return Ok(());
    };
    let start = Instant::now();
    let mut at = head.start;
    let whole = divisible(request, &response, head);
    if sender.send(event).is_err() {
        return Ok(());
    }
    loop {
        match next_chunk(request, &mut response).await {
            None => return Ok(()),
            Some(Err(reason)) => return Err(fail(reason)),
            Some(Ok(Some(bytes))) => {
                at += bytes.len() as u64;
                if sender.send(Event::Chunk(bytes)).is_err() {
                    return Ok(());
                }
            }
            Some(Ok(None)) => {
                let _ = sender.send(Event::End); // the receiver may have all it wants
                return Ok(());
            }
        }
        if let Some((total, validators)) = &whole
            && total.saturating_sub(at) >= segments::LEAST
            && start.elapsed() >= segments::AFTER
        {
            drop(response);
            let whole = Whole {
                client: &client,
                request,
                total: *total,
                validators,
            };
            return whole.rest(at, sender).await;
        }
    }
}

/// Length and validators of a file that may be asked for in segments.
fn divisible(request: &Request, response: &Response, head: &Head) -> Option<(u64, Validators)> {
    let ranges = response.status() == 206
        || text(response.headers(), ACCEPT_RANGES).is_some_and(|unit| unit.trim() == "bytes");
    let strong = head.validators.strong().is_some();
    (ranges && strong && request.connections > 1)
        .then(|| Some((head.total?, head.validators.clone())))
        .flatten()
}

/// What the head of an answer means.
pub(super) fn head(request: &Request, response: &Response) -> Result<Event, DownloadReason> {
    let status = response.status().as_u16();
    let headers = response.headers();
    let validators = Validators {
        etag: text(headers, ETAG),
        last_modified: text(headers, LAST_MODIFIED),
    };
    match status {
        200 => Ok(Event::Head(Head {
            start: 0,
            total: response.content_length(),
            validators,
        })),
        206 => {
            let range = text(headers, CONTENT_RANGE).unwrap_or_default();
            let (start, total) = content_range(&range).ok_or_else(|| {
                DownloadReason::Protocol(format!("Content-Range {range:?} for a range"))
            })?;
            Ok(Event::Head(Head {
                start,
                total,
                validators,
            }))
        }
        304 if request.unless.is_some() => Ok(Event::NotModified),
        416 if request.from > 0 => {
            let range = text(headers, CONTENT_RANGE).unwrap_or_default();
            Ok(Event::RangeRefused(
                range
                    .strip_prefix("bytes */")
                    .and_then(|total| total.trim().parse().ok()),
            ))
        }
        _ => Err(refusal(status)),
    }
}

/// What a status means that brings no file.
pub(super) fn refusal(status: u16) -> DownloadReason {
    match status {
        404 | 410 => DownloadReason::NotFound(status),
        401 | 403 | 407 => DownloadReason::Denied(status),
        500..=599 => DownloadReason::Server(status),
        _ => DownloadReason::Status(status),
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned)
}

/// First byte and whole length of `bytes 5-9/10` or `bytes 5-9/*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

fn client(request: &Request) -> Result<Client, DownloadReason> {
    let setup = |error: &dyn Error| DownloadReason::Setup(error.to_string());
    let secure = request.url.secret().scheme() == "https";
    let posting = request.form.is_some();
    let policy = Policy::custom(move |attempt| {
        if posting {
            return attempt.stop();
        }
        if attempt.previous().len() > REDIRECTS {
            return attempt.error(TooManyRedirects);
        }
        if secure && attempt.url().scheme() != "https" {
            return attempt.error(RedirectToHttp);
        }
        attempt.follow()
    });
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(policy)
        .connect_timeout(request.connect_timeout)
        .tls_backend_preconfigured(tls::config().map_err(|error| setup(&error))?)
        .no_proxy();
    if let Some(proxy) = &request.proxy {
        // The text of a proxy may hold a password: the error must not show it.
        let proxy = Proxy::all(proxy)
            .map_err(|_| DownloadReason::Setup("the proxy is not a URL".to_owned()))?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|error| setup(&error))
}

#[derive(Debug, thiserror::Error)]
#[error("too many redirects")]
struct TooManyRedirects;

#[derive(Debug, thiserror::Error)]
#[error("a redirect to http")]
struct RedirectToHttp;

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        let error: &'a (dyn Error + 'static) = *error;
        // The error inside an io::Error is no source of it.
        let inside = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        inside
            .map(|inside| inside as &(dyn Error + 'static))
            .or_else(|| error.source())
    })
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error)
        .last()
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// Finds what really happened in the layers of a client's error.
fn explain(request: &Request, error: &reqwest::Error) -> DownloadError {
    let url = error.url().map_or_else(
        || request.url.clone(),
        |url| ImageUrl::from_url(url.clone()),
    );
    let host = url.host().to_owned();
    let any = |test: &dyn Fn(&(dyn Error + 'static)) -> bool| causes(error).any(test);
    let io_kind = |kind: io::ErrorKind| {
        any(&|cause| {
            cause
                .downcast_ref::<io::Error>()
                .is_some_and(|e| e.kind() == kind)
        })
    };
    let reason = if any(&|cause| cause.is::<TooManyRedirects>()) {
        DownloadReason::Redirects(REDIRECTS)
    } else if any(&|cause| cause.is::<RedirectToHttp>()) {
        DownloadReason::Downgrade
    } else if any(&|cause| {
        cause.is::<rustls::Error>() || cause.to_string().starts_with("tls handshake")
    }) {
        DownloadReason::Tls {
            host,
            reason: innermost(error),
        }
    } else if io_kind(io::ErrorKind::ConnectionRefused) {
        DownloadReason::Refused(host)
    } else if any(&|cause| cause.to_string().starts_with("dns error")) {
        DownloadReason::UnknownHost(host)
    } else if error.is_timeout() {
        DownloadReason::ConnectTimeout(request.connect_timeout.as_secs())
    } else if error.is_connect() {
        DownloadReason::Connect {
            host,
            reason: innermost(error),
        }
    } else if error.is_request() || error.is_body() {
        DownloadReason::Broken(innermost(error))
    } else {
        DownloadReason::Protocol(innermost(error))
    };
    DownloadError { url, reason }
}
