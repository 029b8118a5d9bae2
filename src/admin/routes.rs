//! What each path answers.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Limited;
use hyper::Method;
use hyper::Request;
use hyper::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::admin::answer::Denied;
use crate::admin::answer::Reply;
use crate::admin::answer::reply;
use crate::admin::desk::Answer;
use crate::admin::desk::Desk;
use crate::admin::desk::Phase;
use crate::admin::desk::Refusal;
use crate::admin::desk::Wish;
use crate::admin::doors::Side;
use crate::admin::guard::Purpose;
use crate::admin::guard::Rules;
use crate::observability::Ledger;

/// Limits on what one request may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// Bytes.
    pub(crate) len: usize,
    pub(crate) time: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    Live,
    Ready,
    Status,
    Config,
    Reload,
    Upgrade,
}

/// Every path, what it is for, and what it answers.
const ROUTES: &[(&str, Purpose, Route)] = &[
    ("/livez", Purpose::Health, Route::Live),
    ("/readyz", Purpose::Health, Route::Ready),
    ("/api/v1/status", Purpose::Reading, Route::Status),
    ("/api/v1/config", Purpose::Reading, Route::Config),
    ("/api/v1/reload", Purpose::Change, Route::Reload),
    ("/api/v1/upgrade", Purpose::Change, Route::Upgrade),
];

/// Answers one request.
pub(crate) async fn respond(
    request: Request<Incoming>,
    side: Side,
    (desk, rules): (&Desk, &Rules),
    limits: BodyLimits,
) -> Reply {
    let (parts, body) = request.into_parts();
    if let Err(denied) = rules.check_host(&parts) {
        return denied.reply("");
    }
    let path = parts.uri.path();
    let Some(&(_, purpose, route)) = ROUTES.iter().find(|(known, ..)| *known == path) else {
        let known: Vec<_> = ROUTES.iter().map(|(path, ..)| *path).collect();
        let help = format!("there are {}", known.join(", "));
        let unknown = Denied::new(StatusCode::NOT_FOUND, "path", "there is nothing at this path", help);
        // Who may not read learns nothing.
        return rules.check(&parts, side, Purpose::Reading).err().unwrap_or(unknown).reply("");
    };
    let methods = if purpose == Purpose::Change { "POST" } else { "GET, HEAD" };
    let is_right = match purpose {
        Purpose::Change => parts.method == Method::POST,
        Purpose::Health | Purpose::Reading => [Method::GET, Method::HEAD].contains(&parts.method),
    };
    if !is_right {
        let message = format!("{path} takes {methods}");
        let help = format!("send it as {methods}");
        return Denied::new(StatusCode::METHOD_NOT_ALLOWED, "method", message, help).reply(methods);
    }
    let answered = match rules.check(&parts, side, purpose) {
        Err(denied) => Err(denied),
        Ok(()) if purpose == Purpose::Change => match read(body, limits).await {
            Ok(body) => change(route, &body, desk).await,
            Err(denied) => Err(denied),
        },
        Ok(()) => show(route, desk),
    };
    answered.unwrap_or_else(|denied| denied.reply(methods))
}

/// The body of a POST.
async fn read(body: Incoming, limits: BodyLimits) -> Result<Bytes, Denied> {
    match timeout(limits.time, Limited::new(body, limits.len).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Denied::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body",
            format!("the body has more than {} bytes", limits.len),
            "send what this path takes",
        )),
        Ok(Err(_)) => {
            Err(Denied::new(StatusCode::BAD_REQUEST, "body", "the body is cut short", "send all of it"))
        }
        Err(_) => Err(Denied::new(
            StatusCode::REQUEST_TIMEOUT,
            "body",
            "the body does not come",
            "send it with the headers",
        )),
    }
}

#[derive(Serialize)]
struct Status {
    state: &'static str,
    version: &'static str,
    pid: u32,
    generation: u64,
    #[serde(flatten)]
    ledger: Ledger,
}

fn show(route: Route, desk: &Desk) -> Result<Reply, Denied> {
    let phase = desk.phase();
    let Some(view) = desk.view() else { return Err(unavailable(phase)) };
    match route {
        Route::Live => {
            let silent = view.ticks().oldest();
            if silent < SILENCE_MAX {
                return Ok(reply(StatusCode::OK, &json!({ "live": true })));
            }
            Err(Denied::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "worker",
                format!("a worker has shown no sign of life for {} s", silent.as_secs()),
                "this is a bug or a machine that hangs: restart tapster, and report its log",
            ))
        }
        Route::Ready if phase == Phase::Running => {
            Ok(reply(StatusCode::OK, &json!({ "ready": true, "state": state(phase) })))
        }
        Route::Ready => Err(unavailable(phase)),
        Route::Config => Ok(reply(StatusCode::OK, &desk.config())),
        Route::Status | Route::Reload | Route::Upgrade => {
            let status = Status {
                state: state(phase),
                version: env!("CARGO_PKG_VERSION"),
                pid: std::process::id(),
                generation: view.generation(),
                ledger: view.ledger(),
            };
            Ok(reply(StatusCode::OK, &status))
        }
    }
}

fn unavailable(phase: Phase) -> Denied {
    Denied { status: StatusCode::SERVICE_UNAVAILABLE, ..phase.into() }
}

/// The word of the status.
fn state(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Running | Phase::Upgrading => "healthy",
        Phase::Draining => "draining",
    }
}

/// What an upgrade takes.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpgradeBody {
    /// The program that takes over.
    binary: Option<PathBuf>,
}

async fn change(route: Route, body: &[u8], desk: &Desk) -> Result<Reply, Denied> {
    if route == Route::Upgrade {
        let UpgradeBody { binary } = parse(body)?;
        let (answer, answered) = Answer::new();
        desk.ask(Wish::Upgrade { binary, answer })?;
        let generation = heard(answered).await?;
        return Ok(reply(StatusCode::OK, &json!({ "generation": generation })));
    }
    let (answer, answered) = Answer::new();
    desk.ask(Wish::Reload(answer))?;
    let reloaded = heard(answered).await?;
    Ok(reply(StatusCode::OK, &json!({ "changes": reloaded.changes, "warnings": reloaded.warnings })))
}

async fn heard<T>(answer: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Denied> {
    // Nobody answers any more when the process ends.
    Ok(answer.await.unwrap_or(Err(Refusal::Phase(Phase::Draining)))?)
}

fn parse<T: Default + for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Denied> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not what this path takes: {error}");
        Denied::new(
            StatusCode::BAD_REQUEST,
            "body",
            message,
            "send a JSON object, as in {\"binary\": \"/usr/bin/tapster\"}",
        )
    })
}

/// A worker ticks once a second: one that has not for so long hangs.
const SILENCE_MAX: Duration = Duration::from_secs(5);
