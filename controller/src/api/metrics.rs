//! Prometheus.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::caller::Asking;
use super::handlers::Refused;
use crate::Controller;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Counts of objects, devices by state, and transactions, as OpenMetrics.
#[utoipa::path(get, path = "/metrics",
    responses((status = 200, body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn metrics(
    State(controller): State<Arc<Controller>>,
    Asking(caller): Asking,
) -> Result<Response, Refused> {
    caller.may_read().map_err(Refused)?;
    let text = tokio::task::spawn_blocking(move || text(&controller)).await;
    Ok(match text {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    })
}

fn text(controller: &Controller) -> Result<String, std::fmt::Error> {
    type ByLabel<const N: usize> = Family<[(&'static str, String); N], Gauge>;
    let mut registry = Registry::with_prefix("orimono");
    let census = controller.census();
    let objects = ByLabel::<1>::default();
    for (kind, count) in census.objects {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        objects
            .get_or_create(&[("kind", kind.to_string())])
            .set(count);
    }
    registry.register("objects", "Objects of the model", objects);
    let devices = ByLabel::<2>::default();
    for (kind, state) in census.states {
        devices
            .get_or_create(&[("kind", kind.to_string()), ("state", state)])
            .inc();
    }
    registry.register("devices", "vNICs and vHBAs by state", devices);
    let counters = controller.counters();
    let revision: Gauge = Gauge::default();
    revision.set(i64::try_from(counters.revision).unwrap_or(i64::MAX));
    registry.register("revision", "Revision of the model", revision);
    for (name, help, value) in [
        (
            "transactions",
            "Transactions since the start",
            counters.transactions,
        ),
        (
            "refusals",
            "Transactions that were refused",
            counters.refusals,
        ),
    ] {
        let counter: Counter<u64, AtomicU64> = Counter::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}
