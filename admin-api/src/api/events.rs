//! Server-sent events: what happens, as it happens.

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    response::{
        Sse,
        sse::{self, KeepAlive},
    },
};
use futures::{Stream, StreamExt};
use http::{StatusCode, Uri, header};
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::{Problem, State, access::Caller, body::Fields};
use crate::Happened;

/// Splits, verdicts, trips, resets and reloads, as server-sent events
///
/// The name of an event is its `type`; its id counts all events since the start. A reader that is too slow gets an event
/// `missed` with how many it missed.
#[utoipa::path(
    get,
    path = "/events",
    responses(
        (status = 200, description = "Each event's data is one Event", body = crate::Event,
         content_type = "text/event-stream"),
        (status = 503, description = "Too many listeners", body = Problem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn events(
    state: State,
    Extension(caller): Extension<Caller>,
    uri: Uri,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Box<Problem>> {
    Fields::query(&uri)?.finish(&[])?;
    let place = state.streams.clone().try_acquire_owned().map_err(|_| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too-many-listeners", "all places for listeners are taken")
            .cure("close another one, or ask /status from time to time")
            .header(header::RETRY_AFTER, "5")
    })?;
    let happened = BroadcastStream::new(state.control.subscribe()).map(move |event| {
        // Lives as long as the stream does.
        let _ = &place;
        Ok(match event {
            Ok(event) => {
                let data = serde_json::to_string(&*event).unwrap_or_default();
                sse::Event::default().id(event.number.to_string()).event(event.what.name()).data(data)
            }
            Err(BroadcastStreamRecvError::Lagged(missed)) => {
                let what = Happened::Missed { missed };
                sse::Event::default().event(what.name()).data(serde_json::to_string(&what).unwrap_or_default())
            }
        })
    });
    // Says at once that it works, so that a client need not wait for the first event.
    let hello = futures::stream::iter([Ok(sse::Event::default().comment("listening"))]);
    let (shutdown, revoked) = (state.shutdown.clone(), state.access.revoked(&caller));
    let over = async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = revoked => {}
        }
    };
    let events = hello.chain(happened).take_until(over);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Finds listeners that have gone without a word.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
