//! Asking a process that runs, at one of its admin addresses.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::Request;
use hyper::StatusCode;
use hyper::client::conn::http1;
use hyper::header::AUTHORIZATION;
use hyper::header::CONTENT_TYPE;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tapster::config::Token;
use tapster::config::admin_addresses;
use tapster::config::default_addresses;
use tapster::observability::printable;
use tapster::transport::Address;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::runtime;
use tokio::time::timeout;

use crate::cli::AdminArgs;
use crate::commands::CommandError;
use crate::commands::tell::tell;

/// A process that runs, by the addresses where it may answer.
#[derive(Debug)]
pub(crate) struct Remote {
    addresses: Vec<Address>,
    token: Option<Token>,
}

/// What it answered.
#[derive(Debug)]
pub(crate) struct Answered {
    status: StatusCode,
    body: Value,
}

impl Remote {
    /// The process that these options name.
    ///
    /// # Errors
    /// The token cannot be read; the configuration switches the addresses off.
    pub(crate) fn new(args: &AdminArgs) -> Result<Self, CommandError> {
        let token = args.token_file.as_deref().map(Token::read).transpose();
        let token = token.map_err(|error| CommandError::Usage(format!("--token-file: {error}")))?;
        let addresses = match &args.admin {
            Some(address) => vec![address.clone()],
            None if args.config.is_empty() => default_addresses(),
            None => admin_addresses(&args.config),
        };
        if addresses.is_empty() {
            let words =
                "the configuration has admin = []: the process answers nowhere; send it SIGHUP or SIGUSR2";
            return Err(CommandError::Usage(words.to_owned()));
        }
        Ok(Self { addresses, token })
    }

    /// Sends a POST, and waits for the answer.
    ///
    /// # Errors
    /// No process is reached; it does not answer within this time, or what it answers is none of ours.
    pub(crate) fn post(&self, path: &str, body: &Value, time: Duration) -> Result<Answered, CommandError> {
        let failed = |error: io::Error| CommandError::Failed(error.to_string());
        let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut unreached = Vec::new();
        let mut answered = None;
        for address in &self.addresses {
            match runtime.block_on(connect(address)) {
                Ok(stream) => {
                    let asked = self.ask(stream, address, path, body);
                    answered = Some((address, runtime.block_on(async { timeout(time, asked).await })));
                    break;
                }
                Err(error) => unreached.push(format!("{address}: {error}")),
            }
        }
        // A lookup that hangs would be waited for.
        runtime.shutdown_background();
        let at = |address| move |error| CommandError::Failed(format!("{address}: {error}"));
        match answered {
            Some((address, Ok(answered))) => answered.map_err(at(address)),
            Some((address, Err(_))) => {
                Err(at(address)(format!("the process does not answer within {} s", time.as_secs())))
            }
            None => Err(CommandError::Failed(format!(
                "tapster is not reached ({}): does it run? --admin names its address",
                unreached.join("; ")
            ))),
        }
    }

    async fn ask(
        &self,
        stream: Box<dyn Connection>,
        address: &Address,
        path: &str,
        body: &Value,
    ) -> Result<Answered, String> {
        let no_answer = |error: hyper::Error| format!("the process gives no answer: {error}");
        let host = match address {
            Address::Tcp { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(_) | Address::Tls { .. } | Address::Systemd(_) => "localhost".to_owned(),
        };
        let mut request = Request::post(path).header(HOST, host).header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.text()));
        }
        let request =
            request.body(Full::new(Bytes::from(body.to_string()))).map_err(|error| error.to_string())?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(no_answer)?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await.map_err(no_answer)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_LEN_MAX).collect().await;
        let body = body.map_err(|error| format!("the answer is cut short: {error}"))?.to_bytes();
        connection.abort();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Answered { status, body })
    }
}

impl Answered {
    /// What came of a wish that was fulfilled.
    ///
    /// # Errors
    /// It was not: exit status 64 where the configuration has faults, else 1.
    pub(crate) fn into_result(self) -> Result<Value, CommandError> {
        let Self { status, body } = self;
        if status.is_success() {
            return Ok(body);
        }
        let error = &body["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default();
        let mut words = match text("message") {
            "" => format!("the process answers with status {status}"),
            message => message.to_owned(),
        };
        for fault in lines(&error["faults"]) {
            words.push_str("\n  ");
            words.push_str(&fault);
        }
        if status == StatusCode::UNPROCESSABLE_ENTITY {
            return Err(CommandError::Usage(words));
        }
        if !text("help").is_empty() {
            words = format!("{words}: {}", text("help"));
        }
        Err(CommandError::Failed(words))
    }
}

/// The texts of a list, harmless for a terminal.
pub(crate) fn lines(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(|text| printable(text).to_string()).collect()
}

/// Says what the process warns of.
pub(crate) fn tell_warnings(body: &Value) {
    for warning in lines(&body["warnings"]) {
        tell(&format_args!("warning: {warning}"));
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

async fn connect(address: &Address) -> io::Result<Box<dyn Connection>> {
    let connect = async {
        match address {
            Address::Unix(path) => {
                UnixStream::connect(path).await.map(|stream| Box::new(stream) as Box<dyn Connection>)
            }
            Address::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                stream.map(|stream| Box::new(stream) as Box<dyn Connection>)
            }
            Address::Tls { .. } | Address::Systemd(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    };
    timeout(CONNECT_TIME, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

const CONNECT_TIME: Duration = Duration::from_secs(5);
/// More than any answer of ours has, bytes.
const ANSWER_LEN_MAX: usize = 64 << 20;
