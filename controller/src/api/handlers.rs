//! Requests and what they do.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use controller_api::{
    Alarm, AuditEntry, Command, Document, Done, Fields, Import, Kind, Refusal, RefusalCode,
    SystemInfo, Transaction, Undo, View,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::caller::Asking;
use crate::access::Caller;
use crate::{Controller, one};

type Shared = State<Arc<Controller>>;
type Answer<T> = Result<Json<T>, Refused>;

/// A refusal as an answer.
#[derive(Debug)]
pub(super) struct Refused(pub(super) Refusal);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            RefusalCode::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            RefusalCode::NotFound => StatusCode::NOT_FOUND,
            RefusalCode::Conflict | RefusalCode::NotAdmitted => StatusCode::CONFLICT,
            RefusalCode::Forbidden => StatusCode::FORBIDDEN,
            RefusalCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(self.0)).into_response()
    }
}

fn malformed(problem: String) -> Refused {
    Refused(Refusal {
        code: RefusalCode::Invalid,
        object: "request".to_owned(),
        problem,
        next: "see /v1/openapi.json".to_owned(),
        command: None,
    })
}

/// A JSON body whose mistakes are answered as everything else.
pub(super) struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refused> {
        let body: Result<Json<T>, JsonRejection> = Json::from_request(request, state).await;
        let body = body.map_err(|error| malformed(error.body_text()))?;
        Ok(Self(body.0))
    }
}

/// The store writes to a disk and the model has one lock: not for the threads that serve sockets.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Answer<T> {
    let result = tokio::task::spawn_blocking(work).await;
    let result = result.map_err(|error| {
        Refused(Refusal {
            code: RefusalCode::Unavailable,
            object: "request".to_owned(),
            problem: format!("it was ended: {error}"),
            next: "report this".to_owned(),
            command: None,
        })
    })?;
    result.map(Json).map_err(Refused)
}

fn kind(text: &str) -> Result<Kind, Refused> {
    text.parse()
        .map_err(|error: controller_api::UnknownKind| malformed(error.to_string()))
}

/// Does all commands, or none.
#[utoipa::path(post, path = "/v1/transactions", request_body = Transaction,
    responses((status = 200, body = Done), (status = "default", body = Refusal)))]
pub(super) async fn transact(
    State(controller): Shared,
    Asking(caller): Asking,
    Body(request): Body<Transaction>,
) -> Answer<Done> {
    blocking(move || controller.transact(&caller, &request)).await
}

/// Which objects.
#[derive(Debug, Deserialize)]
pub(super) struct Named {
    #[serde(default = "everything")]
    name: String,
}

fn everything() -> String {
    "*".to_owned()
}

/// Objects of a kind whose names are as `name` says, in which `*` stands for anything.
#[utoipa::path(get, path = "/v1/objects/{kind}",
    params(("kind" = Kind, Path), ("name" = Option<String>, Query)),
    responses((status = 200, body = Vec<View>), (status = "default", body = Refusal)))]
pub(super) async fn list_objects(
    State(controller): Shared,
    Asking(caller): Asking,
    Path(of): Path<String>,
    named: Result<Query<Named>, QueryRejection>,
) -> Answer<Vec<View>> {
    let kind = kind(&of)?;
    let Query(named) = named.map_err(|error| malformed(error.body_text()))?;
    blocking(move || controller.list(&caller, kind, &named.name)).await
}

/// One object.
#[utoipa::path(get, path = "/v1/objects/{kind}/{name}",
    params(("kind" = Kind, Path), ("name" = String, Path)),
    responses((status = 200, body = View), (status = "default", body = Refusal)))]
pub(super) async fn get_object(
    State(controller): Shared,
    Asking(caller): Asking,
    Path((of, name)): Path<(String, String)>,
) -> Answer<View> {
    let kind = kind(&of)?;
    blocking(move || controller.get(&caller, kind, &name)).await
}

async fn command(controller: Arc<Controller>, caller: Caller, command: Command) -> Answer<Done> {
    blocking(move || controller.transact(&caller, &one(command, ""))).await
}

/// Makes an object.
#[utoipa::path(post, path = "/v1/objects/{kind}/{name}", request_body = Object,
    params(("kind" = Kind, Path), ("name" = String, Path)),
    responses((status = 200, body = Done), (status = "default", body = Refusal)))]
pub(super) async fn add_object(
    State(controller): Shared,
    Asking(caller): Asking,
    Path((of, name)): Path<(String, String)>,
    Body(fields): Body<Fields>,
) -> Answer<Done> {
    let kind = kind(&of)?;
    command(controller, caller, Command::Add { kind, name, fields }).await
}

/// Changes fields of an object (RFC 7396).
#[utoipa::path(patch, path = "/v1/objects/{kind}/{name}", request_body = Object,
    params(("kind" = Kind, Path), ("name" = String, Path)),
    responses((status = 200, body = Done), (status = "default", body = Refusal)))]
pub(super) async fn set_object(
    State(controller): Shared,
    Asking(caller): Asking,
    Path((of, name)): Path<(String, String)>,
    Body(fields): Body<Fields>,
) -> Answer<Done> {
    let kind = kind(&of)?;
    command(controller, caller, Command::Set { kind, name, fields }).await
}

/// Removes an object, and what belongs to it.
#[utoipa::path(delete, path = "/v1/objects/{kind}/{name}",
    params(("kind" = Kind, Path), ("name" = String, Path)),
    responses((status = 200, body = Done), (status = "default", body = Refusal)))]
pub(super) async fn remove_object(
    State(controller): Shared,
    Asking(caller): Asking,
    Path((of, name)): Path<(String, String)>,
) -> Answer<Done> {
    let kind = kind(&of)?;
    command(controller, caller, Command::Remove { kind, name }).await
}

/// Takes back the last change that was not taken back.
#[utoipa::path(post, path = "/v1/undo", request_body = Undo,
    responses((status = 200, body = Done), (status = "default", body = Refusal)))]
pub(super) async fn undo(
    State(controller): Shared,
    Asking(caller): Asking,
    Body(request): Body<Undo>,
) -> Answer<Done> {
    blocking(move || controller.undo(&caller, &request)).await
}

/// Which entries.
#[derive(Debug, Deserialize)]
pub(super) struct Before {
    #[serde(default = "newest")]
    before: u64,
}

const fn newest() -> u64 {
    u64::MAX
}

/// The log before revision `before`, newest first, at most 1,000 entries.
#[utoipa::path(get, path = "/v1/audit", params(("before" = Option<u64>, Query)),
    responses((status = 200, body = Vec<AuditEntry>), (status = "default", body = Refusal)))]
pub(super) async fn audit(
    State(controller): Shared,
    Asking(caller): Asking,
    before: Result<Query<Before>, QueryRejection>,
) -> Answer<Vec<AuditEntry>> {
    let Query(Before { before }) = before.map_err(|error| malformed(error.body_text()))?;
    blocking(move || controller.audit(&caller, before)).await
}

/// What wants attention.
#[utoipa::path(get, path = "/v1/alarms",
    responses((status = 200, body = Vec<Alarm>), (status = "default", body = Refusal)))]
pub(super) async fn alarms(
    State(controller): Shared,
    Asking(caller): Asking,
) -> Answer<Vec<Alarm>> {
    blocking(move || controller.alarms(&caller)).await
}

/// The whole model.
#[utoipa::path(get, path = "/v1/export",
    responses((status = 200, body = Document), (status = "default", body = Refusal)))]
pub(super) async fn export(State(controller): Shared, Asking(caller): Asking) -> Answer<Document> {
    blocking(move || controller.export(&caller)).await
}

/// Makes the model what a document says: what it does not name goes.
#[utoipa::path(post, path = "/v1/import", request_body = Import,
    responses((status = 200, body = Done), (status = "default", body = Refusal)))]
pub(super) async fn import(
    State(controller): Shared,
    Asking(caller): Asking,
    Body(request): Body<Import>,
) -> Answer<Done> {
    blocking(move || controller.import(&caller, &request)).await
}

/// The controller itself, and who asks.
#[utoipa::path(get, path = "/v1/system",
    responses((status = 200, body = SystemInfo), (status = "default", body = Refusal)))]
pub(super) async fn system(
    State(controller): Shared,
    Asking(caller): Asking,
) -> Answer<SystemInfo> {
    blocking(move || Ok(controller.system(&caller))).await
}
