//! Names to addresses, in a way that never delays an end.
//!
//! The lookup of the C library cannot be interrupted, and takes as long as the name servers let it. On tokio's pool of
//! blocking threads it holds up the end of the relay, because a runtime that ends joins that pool: with name servers that
//! did not answer, a drain limited to 2 s took 26 s. So each lookup has a thread of its own, and nobody joins it. All that
//! ask for the same name and port wait for one lookup: there are never more threads than names.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::ToSocketAddrs;
use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

use tokio::sync::oneshot;

/// Resolves a host, anew each time. At least one address, in the order in which they are to be tried. Cancel-safe: the
/// lookup goes on, for those who ask again.
///
/// # Errors
/// What the lookup says; that no thread could be started.
pub(super) async fn resolve(host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
    static OF_THIS_PROCESS: LazyLock<Arc<Lookups>> =
        LazyLock::new(|| Lookups::new(|host, port| (host, port).to_socket_addrs().map(Iterator::collect)));
    match host.parse::<IpAddr>() {
        Ok(ip) => Ok([SocketAddr::new(ip, port)].into()),
        Err(_) => OF_THIS_PROCESS.resolve(host, port).await,
    }
}

/// The lookups that are under way.
struct Lookups {
    lookup: Box<Lookup>,
    // For each the ones that wait for it. Locked for moments only.
    under_way: Mutex<HashMap<(String, u16), Waiting>>,
}

type Waiting = Vec<oneshot::Sender<Answer>>;

type Addresses = Arc<[SocketAddr]>;

/// Blocks until it knows.
type Lookup = dyn Fn(&str, u16) -> io::Result<Addresses> + Send + Sync;

/// Shared by all that wait for it.
type Answer = Result<Addresses, Arc<io::Error>>;

impl Lookups {
    fn new(lookup: impl Fn(&str, u16) -> io::Result<Addresses> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { lookup: Box::new(lookup), under_way: Mutex::default() })
    }

    async fn resolve(self: &Arc<Self>, host: &str, port: u16) -> io::Result<Addresses> {
        match self.answer(host, port)?.await {
            Ok(Ok(addresses)) if addresses.is_empty() => {
                Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
            }
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => Err(io::Error::new(error.kind(), error)),
            Err(_) => Err(io::Error::other("the lookup ended without an answer")),
        }
    }

    /// Joins the lookup that is under way, or begins one.
    fn answer(self: &Arc<Self>, host: &str, port: u16) -> io::Result<oneshot::Receiver<Answer>> {
        let (sender, receiver) = oneshot::channel();
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        match under_way.entry((host.to_owned(), port)) {
            Entry::Occupied(mut waiting) => {
                // Those who gave up would gather here as long as no name server answers.
                waiting.get_mut().retain(|other| !other.is_closed());
                waiting.get_mut().push(sender);
            }
            Entry::Vacant(free) => {
                let (lookups, name) = (Arc::clone(self), free.key().clone());
                thread::Builder::new()
                    .name("tapster-resolve".to_owned())
                    .spawn(move || lookups.run(&name))?;
                free.insert(vec![sender]);
            }
        }
        Ok(receiver)
    }

    fn run(&self, name: &(String, u16)) {
        let answer = (self.lookup)(&name.0, name.1).map_err(Arc::new);
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = under_way.remove(name);
        drop(under_way);
        for sender in waiting.into_iter().flatten() {
            // One that gave up meanwhile needs no answer.
            let _ = sender.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;
    use std::sync::mpsc;
    use std::time::Duration;
    use std::time::Instant;

    use tokio::time::timeout;

    use super::*;
    use crate::transport::epoll;

    /// Lookups that hang until they are given an answer, and how many have begun.
    fn hanging() -> (Arc<Lookups>, mpsc::Sender<io::Result<Addresses>>, Arc<AtomicUsize>) {
        let (answer, answers) = mpsc::channel();
        let answers = Mutex::new(answers);
        let begun = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&begun);
        let lookups = Lookups::new(move |_, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            answers.lock().unwrap().recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
        });
        (lookups, answer, begun)
    }

    #[test]
    fn name_servers_that_do_not_answer_cost_one_thread_for_each_name_and_delay_no_end() {
        let (lookups, answer, begun) = hanging();
        let begin = Instant::now();
        let runtime = epoll::runtime().unwrap();
        runtime.block_on(async {
            for _ in 0..20 {
                for (host, port) in [("siem.example", 6000), ("siem.example", 6001), ("b.example", 6000)] {
                    let gave_up = timeout(Duration::from_millis(1), lookups.resolve(host, port)).await;
                    assert!(gave_up.is_err());
                }
            }
        });
        drop(runtime);
        assert!(begin.elapsed() < Duration::from_secs(5));
        assert!(begun.load(Ordering::Relaxed) <= 3);
        let under_way = lookups.under_way.lock().unwrap();
        assert!(under_way.len() == 3 && under_way.values().all(|waiting| waiting.len() == 1));
        drop(answer);
    }

    #[test]
    fn all_that_ask_for_a_name_get_the_answer_of_one_lookup_and_the_next_asks_anew() {
        let (lookups, answer, begun) = hanging();
        epoll::runtime().unwrap().block_on(async {
            let asked = async {
                tokio::join!(lookups.resolve("a.example", 1), lookups.resolve("a.example", 1), async {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    answer.send(Ok([SocketAddr::from(([192, 0, 2, 1], 1))].into())).unwrap();
                })
            };
            let (first, second, ()) = timeout(Duration::from_secs(10), asked).await.unwrap();
            assert_eq!(first.unwrap(), second.unwrap());
            assert_eq!(begun.load(Ordering::Relaxed), 1);
            answer.send(Err(io::Error::new(io::ErrorKind::NotFound, "no such name"))).unwrap();
            let error = lookups.resolve("a.example", 1).await.unwrap_err();
            assert_eq!((error.kind(), &error.to_string()[..]), (io::ErrorKind::NotFound, "no such name"));
            answer.send(Ok([].into())).unwrap();
            assert!(lookups.resolve("a.example", 1).await.is_err());
            assert_eq!(begun.load(Ordering::Relaxed), 3);
        });
    }

    #[test]
    fn addresses_need_no_lookup_and_localhost_has_one() {
        epoll::runtime().unwrap().block_on(async {
            let addresses = resolve("::1", 53).await.unwrap();
            assert_eq!(addresses[..], ["[::1]:53".parse().unwrap()]);
            assert!(resolve("localhost", 53).await.unwrap().iter().all(|address| address.ip().is_loopback()));
        });
    }
}
