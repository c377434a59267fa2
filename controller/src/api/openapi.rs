//! The document of the API, generated from its handlers and types.

use axum::Json;
use axum::response::IntoResponse;
use controller_api::objects;
use utoipa::OpenApi;

use super::{events, handlers, metrics};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Orimono controller",
        description = "Objects, changes and states of a fabric"
    ),
    paths(
        handlers::transact,
        handlers::list_objects,
        handlers::get_object,
        handlers::add_object,
        handlers::set_object,
        handlers::remove_object,
        handlers::undo,
        handlers::audit,
        handlers::alarms,
        handlers::export,
        handlers::import,
        handlers::system,
        events::events,
        metrics::metrics
    ),
    components(schemas(
        objects::Director,
        objects::EthernetPort,
        objects::FcPort,
        objects::Host,
        objects::Iocard,
        objects::Lag,
        objects::Lun,
        objects::LunMask,
        objects::PhysicalServer,
        objects::Policy,
        objects::Pool,
        objects::PublicNetwork,
        objects::Pvi,
        objects::RoleMapping,
        objects::SanMap,
        objects::ServerProfile,
        objects::System,
        objects::Template,
        objects::User,
        objects::Vhba,
        objects::Vnic
    ))
)]
struct Api;

/// The document as JSON.
///
/// # Errors
/// It cannot be written as JSON.
pub fn document() -> Result<String, serde_json::Error> {
    Api::openapi().to_pretty_json()
}

/// The document.
pub(super) async fn serve() -> impl IntoResponse {
    Json(Api::openapi())
}
