//! The thread that answers, and its connections.

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpListener;
use tokio::net::UnixListener;
use tokio::runtime;
use tokio::select;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio::time::sleep;
use tokio::time::timeout;
use tracing::debug;
use tracing::warn;

use crate::admin::deadline::WriteDeadline;
use crate::admin::desk::Desk;
use crate::admin::doors::Door;
use crate::admin::doors::Entrance;
use crate::admin::doors::Opened;
use crate::admin::doors::Side;
use crate::admin::guard::Rules;
use crate::admin::routes::BodyLimits;
use crate::admin::routes::respond;
use crate::config::AdminConfig;
use crate::transport::Address;

/// The admin addresses of a process, and the thread that answers there. Without an address there is no thread.
#[derive(Debug)]
pub struct Server {
    desk: Arc<Desk>,
    limits: Limits,
    config: AdminConfig,
    doors: Arc<Mutex<Vec<Door>>>,
    rules: Arc<Mutex<Arc<Rules>>>,
    thread: Option<Running>,
}

#[derive(Debug)]
struct Running {
    orders: UnboundedSender<Order>,
    ended: mpsc::Receiver<()>,
}

/// What the thread is told.
#[derive(Debug)]
enum Order {
    /// Accept at these entrances, and at no others.
    Accept(Vec<Entrance>),
    /// Answer what was asked, and end.
    End,
}

/// What one peer may take of the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the beginning of a connection, or the end of an answer, to the end of the headers of a request.
    pub(crate) header_time: Duration,
    /// For a body.
    pub(crate) body_time: Duration,
    /// How long a peer may take nothing of an answer.
    pub(crate) write_time: Duration,
    /// Bytes of headers.
    pub(crate) header_len: usize,
    /// Bytes of a body.
    pub(crate) body_len: usize,
    /// All together. Beyond, a connection is closed at once.
    pub(crate) connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_time: Duration::from_secs(5),
            body_time: Duration::from_secs(5),
            write_time: Duration::from_secs(5),
            header_len: 8 << 10,
            body_len: 64 << 10,
            connections: 32,
        }
    }
}

impl Server {
    /// A server without an address.
    pub fn new(desk: Arc<Desk>) -> Self {
        Self::with_limits(desk, Limits::default())
    }

    pub(crate) fn with_limits(desk: Arc<Desk>, limits: Limits) -> Self {
        let config = AdminConfig { listen: Some(Vec::new()), ..AdminConfig::default() };
        Self { desk, limits, config, doors: Arc::default(), rules: Arc::default(), thread: None }
    }

    /// The configuration that it has.
    pub fn config(&self) -> &AdminConfig {
        &self.config
    }

    /// Where it listens, as it was configured: what need not be [opened](Opened::open) again.
    pub fn present(&self) -> Vec<Address> {
        lock(&self.doors).iter().map(|door| door.configured().clone()).collect()
    }

    /// Goes on with another configuration, of whose addresses those are open now that were not. Closes what is not configured any
    /// more; connections that are open there go on.
    ///
    /// # Errors
    /// The system has no thread or descriptor for it.
    pub fn adopt(&mut self, config: AdminConfig, opened: Opened) -> io::Result<()> {
        let addresses = config.addresses();
        {
            let mut doors = lock(&self.doors);
            doors.retain(|door| addresses.contains(door.configured()));
            doors.extend(opened.doors);
        }
        *lock(&self.rules) = Arc::new(Rules::new(&config));
        self.config = config;
        if self.thread.is_none() && !lock(&self.doors).is_empty() {
            self.thread = Some(self.start()?);
        }
        self.resume()
    }

    /// Accepts nothing until it [resumes](Self::resume): what comes waits for the process that takes over.
    pub fn pause(&self) {
        self.order(Order::Accept(Vec::new()));
    }

    /// Accepts at every address.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn resume(&self) -> io::Result<()> {
        let entrances = lock(&self.doors).iter_mut().map(Door::entrance).collect::<io::Result<_>>()?;
        self.order(Order::Accept(entrances));
        Ok(())
    }

    /// Descriptors of the listening sockets for a process that takes over, by name.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn lend(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        lock(&self.doors).iter().map(Door::lend).collect()
    }

    /// The process that had the addresses before has ended: their files are removed with this server.
    pub fn own(&self) {
        lock(&self.doors).iter_mut().for_each(Door::own);
    }

    /// Another process has the addresses now: their files stay.
    pub fn leave(&self) {
        lock(&self.doors).drain(..).for_each(Door::leave);
    }

    /// Ends when everything that was asked is answered, or soon.
    pub fn end(mut self) {
        self.order(Order::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.ended.recv_timeout(END_TIME * 2);
        }
    }

    fn order(&self, order: Order) {
        if let Some(thread) = &self.thread {
            // A thread that has failed answers nobody, and the relay goes on.
            let _ = thread.orders.send(order);
        }
    }

    fn start(&self) -> io::Result<Running> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, ordered) = unbounded_channel();
        let (ending, ended) = mpsc::channel();
        let shared = Shared {
            desk: Arc::clone(&self.desk),
            rules: Arc::clone(&self.rules),
            limits: self.limits,
            places: Arc::new(Semaphore::new(self.limits.connections)),
        };
        let doors = Arc::clone(&self.doors);
        let run = move || {
            runtime.block_on(serve(ordered, doors, shared));
            drop(ending);
        };
        thread::Builder::new().name("admin".to_owned()).spawn(run)?;
        Ok(Running { orders, ended })
    }
}

/// What every connection has.
#[derive(Clone)]
struct Shared {
    desk: Arc<Desk>,
    rules: Arc<Mutex<Arc<Rules>>>,
    limits: Limits,
    places: Arc<Semaphore>,
}

async fn serve(mut orders: UnboundedReceiver<Order>, doors: Arc<Mutex<Vec<Door>>>, shared: Shared) {
    let mut accepting = JoinSet::new();
    let (ending, end) = watch::channel(());
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let order = select! {
            order = orders.recv() => order.unwrap_or(Order::End),
            _ = look.tick() => {
                lock(&doors).iter_mut().for_each(look_after);
                continue;
            }
        };
        accepting.shutdown().await;
        match order {
            Order::Accept(entrances) => {
                for entrance in entrances {
                    accepting.spawn(accept(entrance, shared.clone(), end.clone()));
                }
            }
            Order::End => break,
        }
    }
    drop((accepting, ending));
    // Every connection has a place until it ends.
    let all = u32::try_from(shared.limits.connections).unwrap_or(u32::MAX);
    let _ = timeout(END_TIME, shared.places.acquire_many(all)).await;
}

fn look_after(door: &mut Door) {
    match door.look_after() {
        Ok(false) => {}
        Ok(true) => {
            warn!(listener = %door.address(), "the admin socket was removed, and tapster has bound it again");
        }
        // The next look tries again, and nobody is hurt meanwhile: once is enough.
        Err(error) => {
            debug!(listener = %door.address(), "the admin socket cannot be bound again: {error}");
        }
    }
}

/// Accepts at one entrance until it is ended.
async fn accept(mut entrance: Entrance, shared: Shared, end: watch::Receiver<()>) {
    loop {
        let ended = match entrance.side {
            Side::Unix => accept_unix(&mut entrance, &shared, &end).await,
            Side::Loopback | Side::Network => accept_tcp(&entrance, &shared, &end).await,
        };
        if let Err(error) = ended {
            warn!("an admin address accepts nothing: {error}");
            return;
        }
    }
}

async fn accept_tcp(entrance: &Entrance, shared: &Shared, end: &watch::Receiver<()>) -> io::Result<()> {
    let listener = TcpListener::from_std(entrance.socket.try_clone()?.into())?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                begin(stream, entrance.side, shared, end);
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Returns when the path was bound again, for the next socket.
async fn accept_unix(entrance: &mut Entrance, shared: &Shared, end: &watch::Receiver<()>) -> io::Result<()> {
    let listener = UnixListener::from_std(entrance.socket.try_clone()?.into())?;
    loop {
        let renewed = async {
            match &mut entrance.renewals {
                Some(renewals) => renewals.recv().await,
                None => None,
            }
        };
        select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => begin(stream, entrance.side, shared, end),
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
            Some(socket) = renewed => {
                entrance.socket = socket;
                return Ok(());
            }
        }
    }
}

/// Serves a connection, if there is a place for it.
fn begin<S>(stream: S, side: Side, shared: &Shared, end: &watch::Receiver<()>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() {
        tokio::spawn(converse(stream, side, shared.clone(), end.clone(), place));
    }
}

async fn converse<S>(
    stream: S,
    side: Side,
    shared: Shared,
    mut end: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Shared { desk, rules, limits, .. } = shared;
    let body = BodyLimits { len: limits.body_len, time: limits.body_time };
    let service = service_fn(move |request| {
        let (desk, rules) = (Arc::clone(&desk), Arc::clone(&lock(&rules)));
        async move { Ok::<_, Infallible>(respond(request, side, (&desk, &rules), body).await) }
    });
    let stream = TokioIo::new(WriteDeadline::new(stream, limits.write_time));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(limits.header_len)
        .serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    let ended = select! {
        ended = &mut connection => ended,
        // The sender has gone.
        _ = end.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!("a connection to an admin address ended: {error}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without a descriptor a listener rests for a moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether the path of a socket is still there.
const LOOK: Duration = Duration::from_secs(1);
/// What was asked is answered within this time at the end.
const END_TIME: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
