//! Answers: JSON, never stored by anybody, and errors in one form.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::StatusCode;
use hyper::header::ALLOW;
use hyper::header::CACHE_CONTROL;
use hyper::header::CONTENT_TYPE;
use hyper::header::HeaderName;
use hyper::header::HeaderValue;
use hyper::header::WWW_AUTHENTICATE;
use hyper::header::X_CONTENT_TYPE_OPTIONS;
use serde::Serialize;
use serde_json::json;

use crate::admin::desk::Phase;
use crate::admin::desk::Refusal;

/// What goes back.
pub(crate) type Reply = Response<Full<Bytes>>;

/// A request that is not granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) status: StatusCode,
    /// For programs.
    pub(crate) code: &'static str,
    /// What is wrong.
    pub(crate) message: String,
    /// What to do.
    pub(crate) help: String,
    /// Faults of the configuration.
    pub(crate) faults: Vec<String>,
}

impl Denied {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self { status, code, message: message.into(), help: help.into(), faults: Vec::new() }
    }

    /// With headers that its status asks for.
    pub(crate) fn reply(&self, methods: &'static str) -> Reply {
        let Self { status, code, message, help, faults } = self;
        let mut error = json!({ "code": code, "message": message, "help": help });
        if !faults.is_empty() {
            error["faults"] = json!(faults);
        }
        let mut reply = reply(*status, &json!({ "error": error }));
        let header: Option<(HeaderName, HeaderValue)> = match *status {
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            StatusCode::METHOD_NOT_ALLOWED => Some((ALLOW, HeaderValue::from_static(methods))),
            _ => None,
        };
        reply.headers_mut().extend(header);
        reply
    }
}

impl From<Phase> for Denied {
    fn from(phase: Phase) -> Self {
        let (code, message, help) = match phase {
            Phase::Starting => ("starting", "tapster is starting", "try again when /readyz answers 200"),
            Phase::Upgrading => {
                ("upgrading", "a new process is taking over", "ask again when it has taken over everything")
            }
            Phase::Draining => ("draining", "tapster is draining and ends", "start it again"),
            Phase::Running => ("running", "tapster is running", "try again"),
        };
        Self::new(StatusCode::CONFLICT, code, message, help)
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Phase(phase) => phase.into(),
            Refusal::Failed(message) => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "failed",
                message,
                "the log of tapster tells more",
            ),
            Refusal::Faults(faults) => {
                let message = match faults.len() {
                    1 => "1 fault in the configuration, nothing has changed".to_owned(),
                    count => format!("{count} faults in the configuration, nothing has changed"),
                };
                let help = "mend the faults, `tapster check` finds most of them, and ask again";
                Self { faults, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "configuration", message, help) }
            }
        }
    }
}

/// An answer of this value.
pub(crate) fn reply(status: StatusCode, value: &impl Serialize) -> Reply {
    let mut body = serde_json::to_vec(value).unwrap_or_default();
    body.push(b'\n');
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}
