//! REST over a Unix socket. Who asks is known by the socket (`SO_PEERCRED`).

mod caller;
mod events;
mod handlers;
mod metrics;
mod openapi;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use tokio::net::UnixListener;

use crate::Controller;
pub use openapi::document as openapi;

/// Bytes of a request's body at most: an import of a large site.
const BODY_BYTES_MAX: usize = 64 << 20;

/// All requests.
fn router(controller: Arc<Controller>) -> Router {
    let object = get(handlers::get_object)
        .post(handlers::add_object)
        .patch(handlers::set_object)
        .delete(handlers::remove_object);
    Router::new()
        .route("/v1/transactions", post(handlers::transact))
        .route("/v1/objects/{kind}", get(handlers::list_objects))
        .route("/v1/objects/{kind}/{*name}", object)
        .route("/v1/undo", post(handlers::undo))
        .route("/v1/audit", get(handlers::audit))
        .route("/v1/alarms", get(handlers::alarms))
        .route("/v1/export", get(handlers::export))
        .route("/v1/import", post(handlers::import))
        .route("/v1/events", get(events::events))
        .route("/v1/system", get(handlers::system))
        .route("/v1/openapi.json", get(openapi::serve))
        .route("/metrics", get(metrics::metrics))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(controller)
}

/// Makes the socket at `path`, in place of one that nobody listens at any more.
///
/// # Errors
/// Somebody listens there, or it cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another controller listens at {}", path.display()),
        ));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Roles decide what a user may; the folder's group decides who gets as far as being asked.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Answers until `stop` is over.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: UnixListener,
    controller: Arc<Controller>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let service = router(controller).into_make_service_with_connect_info::<caller::Peer>();
    tokio::select! {
        served = async { axum::serve(listener, service).await } => served,
        // Listeners for events never end by themselves.
        () = stop => Ok(()),
    }
}
