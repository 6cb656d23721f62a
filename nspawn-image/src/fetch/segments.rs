//! The rest of a large download over several connections at once, handed on in its order.
//!
//! Many servers give each connection its share, and a distant one fills a connection slowly. Each connection asks for
//! one segment after another; a segment waits in memory until those before it have been handed on.
//! Source: RFC 9110, 14.2 (ranges) and 13.1.5 (If-Range).

use std::sync::mpsc::SyncSender;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use reqwest::{Client, Response};

use super::error::DownloadReason;
use super::transfer::{Event, Head, Request, head, next_chunk, send};
use super::{DownloadError, Validators};
use crate::reference::ImageUrl;

/// Bytes in one segment: in memory are at most so many for each connection.
const SEGMENT: u64 = 4 << 20;
/// A download that is over sooner gains nothing.
pub(super) const AFTER: Duration = Duration::from_secs(1);
/// Nor does one with less to come, in bytes.
pub(super) const LEAST: u64 = 32 << 20;

/// What all segments must belong to.
pub(super) struct Whole<'a> {
    pub(super) client: &'a Client,
    pub(super) request: &'a Request,
    /// The file's length, in bytes.
    pub(super) total: u64,
    pub(super) validators: &'a Validators,
}

impl Whole<'_> {
    /// Gets everything from byte `from` on. Nothing more is sent where the receiver or the call is gone.
    pub(super) async fn rest(
        &self,
        from: u64,
        sender: &SyncSender<Event>,
    ) -> Result<(), DownloadError> {
        let starts = (0..(self.total - from).div_ceil(SEGMENT)).map(|index| from + index * SEGMENT);
        let mut segments = stream::iter(starts.map(|start| self.segment(start)))
            .buffered(self.request.connections);
        while let Some(segment) = segments.next().await {
            let Some(chunks) = segment? else {
                return Ok(());
            };
            for chunk in chunks {
                if sender.send(Event::Chunk(chunk)).is_err() {
                    return Ok(());
                }
            }
        }
        let _ = sender.send(Event::End); // the receiver may have all it wants
        Ok(())
    }

    /// All of one segment; `None` when the call was cancelled.
    async fn segment(&self, start: u64) -> Result<Option<Vec<Bytes>>, DownloadError> {
        let end = self.total.min(start + SEGMENT);
        let request = Request {
            from: start,
            to: Some(end - 1),
            if_range: self.validators.strong().map(str::to_owned),
            unless: None,
            ..self.request.clone()
        };
        let Some(mut response) = send(self.client, &request).await? else {
            return Ok(None);
        };
        let url = ImageUrl::from_url(response.url().clone());
        let fail = |reason| DownloadError {
            url: url.clone(),
            reason,
        };
        self.check(&request, &response).map_err(fail)?;
        let (mut chunks, mut received) = (Vec::new(), 0);
        while received < end - start {
            match next_chunk(&request, &mut response).await {
                Some(Ok(Some(chunk))) => {
                    received += chunk.len() as u64;
                    chunks.push(chunk);
                }
                Some(Ok(None)) => {
                    return Err(fail(DownloadReason::CutShort {
                        expected: end - start,
                        received,
                    }));
                }
                Some(Err(reason)) => return Err(fail(reason)),
                None => return Ok(None),
            }
        }
        if received > end - start {
            return Err(fail(DownloadReason::Protocol(
                "more bytes than the range that was asked for".to_owned(),
            )));
        }
        Ok(Some(chunks))
    }

    /// Whether an answer is the segment asked for, and of the same file.
    fn check(&self, request: &Request, response: &Response) -> Result<(), DownloadReason> {
        let same = match head(request, response)? {
            Event::Head(Head {
                start,
                total,
                validators,
            }) => {
                start == request.from
                    && total.is_none_or(|total| total == self.total)
                    && !self.validators.contradict(&validators)
            }
            _ => false,
        };
        if same {
            return Ok(());
        }
        Err(DownloadReason::Protocol(format!(
            "an answer to the range from byte {} that does not fit the file",
            request.from
        )))
    }
}
