//! One address that an input dials: looked up, connected to at every site, and again when a connection ends.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::faults;
use crate::input::connection::WorkerInput;
use crate::input::dial_schedule::Schedule;
use crate::input::dialled::Dialled;
use crate::input::dialled::DialledConnection;
use crate::lifecycle::Phase;
use crate::lifecycle::Scope;
use crate::observability::listener_log::Event;
use crate::observability::listener_log::ListenerLog;
use crate::observability::told_reasons::ToldReasons;
use crate::transport::Address;
use crate::transport::dial;
use crate::transport::dial::Attempts;
use crate::transport::dial::Site;
use crate::transport::own_listeners::OwnListeners;
use crate::transport::process::AcceptedPeer;
use crate::transport::socket::ConnectOptions;
use crate::transport::socket::Socket;

/// What dialling one address takes.
pub(crate) struct Dialling {
    pub(crate) input: Rc<WorkerInput>,
    pub(crate) dialled: Arc<Dialled>,
    /// Where no input dials.
    pub(crate) own: Arc<OwnListeners>,
    pub(crate) log: Arc<ListenerLog>,
}

/// A connection, and who is at its far end.
type Opened = (Socket, AcceptedPeer);

impl Dialling {
    /// Dials until this scope drains, and gives each connection to `serve`. Connections that are open then go on. If the task
    /// panics, it begins again.
    pub(crate) async fn run(self, scope: Scope, serve: impl Fn(Opened, DialledConnection)) {
        let mut phases = scope.phases();
        while scope.guard("dialling").supervise(self.dial(&scope, &serve)).await.is_none() {
            tokio::select! {
                () = tokio::time::sleep(PANIC_PAUSE) => {}
                () = phases.reached(Phase::Draining) => return,
            }
        }
    }

    async fn dial(&self, scope: &Scope, serve: impl Fn(Opened, DialledConnection)) {
        let mut phases = scope.phases();
        let reconnect = self.input.config.borrow().reconnect;
        let (open, seed) = (self.dialled.open_sites(), fastrand::u64(..));
        let mut schedule = Schedule::new(reconnect, open, seed, Instant::now());
        let mut lookup: Attempts<(), io::Result<Vec<Site>>> = Vec::new();
        let mut attempts: Attempts<Site, io::Result<Opened>> = Vec::new();
        let mut told = Told::default();
        loop {
            let now = Instant::now();
            let options = self.options();
            schedule.reconfigure(self.input.config.borrow().reconnect, now);
            for (site, since) in self.dialled.take_ended() {
                schedule.handle_ended(&site, since, now);
            }
            if schedule.poll_lookup(now) {
                lookup.push(((), Box::pin(sites(self.dialled.to().clone(), options.timeout))));
            }
            while let Some(site) = schedule.poll_dial() {
                let to = site.clone();
                attempts.push((site, Box::pin(async move { connect(&to, &options).await })));
            }
            let due = schedule.poll_timeout();
            tokio::select! {
                biased;
                () = phases.reached(Phase::Draining) => return,
                () = self.dialled.changed() => {}
                ((), found) = dial::first(&mut lookup) => match found {
                    Ok(sites) => {
                        let left_out = schedule.handle_found(&sites, Instant::now());
                        told.found(&schedule);
                        if left_out == 0 {
                            told.lookups.clear();
                        } else if told.is_new(None, TOO_MANY) {
                            self.log.tell(Event::Unreachable, None, || format!("{left_out} {TOO_MANY}"));
                        }
                    }
                    Err(error) => {
                        schedule.handle_lookup_failed(Instant::now());
                        self.failed(&mut told, None, &format!("cannot look the name up: {error}"));
                    }
                },
                (site, result) = dial::first(&mut attempts) => {
                    match result {
                        Ok(opened) if self.own.behind(&opened.0).is_none() => {
                            schedule.handle_opened(&site);
                            told.connected(&site);
                            faults::point("dialling", &self.input.config.borrow().name);
                            serve(opened, self.dialled.opened(site));
                        }
                        result => {
                            schedule.handle_failed(&site, Instant::now());
                            self.refused(&mut told, &site, result);
                        }
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or(now).into()), if due.is_some() => {}
            }
        }
    }

    fn options(&self) -> ConnectOptions {
        let timeout = self.input.config.borrow().handshake_timeout;
        ConnectOptions { timeout, user_timeout: USER_TIMEOUT, send_proxy: None }
    }

    /// No connection, or one to a listener of this relay.
    fn refused(&self, told: &mut Told, site: &Site, result: io::Result<Opened>) {
        let own = match result {
            Ok((socket, _)) => self.own.behind(&socket),
            Err(error) => return self.failed(told, Some(site), &format!("cannot connect: {error}")),
        };
        let Some(input) = own else { return };
        self.input.account.dial_failed();
        let words = format!(
            "{site} leads to input `{input}` of this same tapster, which sends no frames; change `dial` of this input"
        );
        if told.is_new(Some(site), &words) {
            self.log.tell(Event::OwnListener, None, || words);
        }
    }

    fn failed(&self, told: &mut Told, site: Option<&Site>, words: &str) {
        self.input.account.dial_failed();
        if told.is_new(site, words) {
            self.log.tell(Event::Unreachable, None, || match site {
                Some(site) => format!("{site}: {words}; tapster tries again"),
                None => format!("{words}; tapster tries again"),
            });
        }
    }
}

/// What the log has of sites that cannot be reached, and of lookups.
#[derive(Default)]
struct Told {
    sites: BTreeMap<String, ToldReasons>,
    lookups: ToldReasons,
}

impl Told {
    fn is_new(&mut self, site: Option<&Site>, words: &str) -> bool {
        match site {
            Some(site) => self.sites.entry(site.to_string()).or_default().is_new(words),
            None => self.lookups.is_new(words),
        }
    }

    fn connected(&mut self, site: &Site) {
        self.sites.remove(&site.to_string());
    }

    /// Nothing is kept of sites that have gone.
    fn found(&mut self, schedule: &Schedule) {
        self.sites.retain(|site, _| schedule.sites().any(|there| there.to_string() == *site));
    }
}

async fn connect(site: &Site, options: &ConnectOptions) -> io::Result<Opened> {
    let socket = dial::connect(site, options).await?;
    let peer = socket.far_end()?;
    Ok((socket, peer))
}

/// As [`dial::sites`], of names that a test has given addresses too.
async fn sites(address: Address, limit: Duration) -> io::Result<Vec<Site>> {
    if let Address::Tcp { host, port } = &address
        && let Some(known) = faults::addresses_of(host)
    {
        let sites: Vec<_> = known.into_iter().map(|ip| Site::Tcp(SocketAddr::new(ip, *port))).collect();
        let not_found = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        return if sites.is_empty() { Err(not_found) } else { Ok(sites) };
    }
    dial::sites(&address, limit).await
}

/// How long nobody dials after a panic.
const PANIC_PAUSE: Duration = Duration::from_secs(1);
/// Behind their number.
const TOO_MANY: &str =
    "addresses of this name are not dialled: tapster dials the first 256; give the producers several names";

/// A producer whose host or network fails without a word is noticed after this time.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
