//! Server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event as Sent, KeepAlive};
use controller_api::Event;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};

use super::caller::Asking;
use super::handlers::Refused;
use crate::Controller;

/// What happens from now on, as events of one JSON text each.
#[utoipa::path(get, path = "/v1/events",
    responses((status = 200, body = Event, content_type = "text/event-stream")))]
pub(super) async fn events(
    State(controller): State<Arc<Controller>>,
    Asking(caller): Asking,
) -> Result<Sse<impl Stream<Item = Result<Sent, Infallible>>>, Refused> {
    caller.may_read().map_err(Refused)?;
    let events = BroadcastStream::new(controller.events());
    let sent = events.map(|event| {
        // A listener that is behind is told so, in place of what it missed.
        let event = event.unwrap_or(Event::Lost);
        let sent = Sent::default().json_data(event);
        Ok(sent.unwrap_or_else(|_no_json| Sent::default().comment("no JSON")))
    });
    Ok(Sse::new(sent).keep_alive(KeepAlive::default()))
}
