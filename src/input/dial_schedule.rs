//! When an input looks a name up, and when it dials which address of it. Told the time, and what came of it.
//!
//! ```text
//! look up ─► every site at once ─► open … ended ─► pause ─► look up ─► still there: again; gone: forgotten
//!                    └─► failed ────────────────────┘
//! ```
//!
//! Before a site is tried again, its name is looked up: an address that the name does not have any more is left alone. Where the
//! lookup fails, the site is tried all the same: name servers that are away keep nobody from a producer that is there. While
//! nothing fails, the name is looked up after each `reconnect.max`, for addresses that are new.

use std::time::Duration;
use std::time::Instant;

use crate::delivery::backoff::Backoff;
use crate::delivery::config::Reconnect;
use crate::transport::dial::Site;

/// The sites of one address that an input dials.
#[derive(Debug)]
pub(super) struct Schedule {
    limits: Reconnect,
    random: fastrand::Rng,
    sites: Vec<Scheduled>,
    // When the name is looked up at the latest.
    look_up_at: Instant,
    looks_up: bool,
    failed_lookups: Backoff,
}

#[derive(Debug)]
struct Scheduled {
    site: Site,
    // Whether the last lookup had it.
    is_listed: bool,
    state: State,
    backoff: Backoff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Tried after this time, unless a lookup shows then that the name does not have it any more.
    Pauses { until: Instant },
    /// To be tried now.
    Due,
    /// Somebody is trying.
    Tried,
    /// A connection is open.
    Open,
}

impl Schedule {
    /// A schedule that begins with a lookup; these sites have connections already. `seed` decides the jitter.
    pub(super) fn new(limits: Reconnect, open: Vec<Site>, seed: u64, now: Instant) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let failed_lookups = Backoff::new(limits, random.u64(..));
        let mut schedule =
            Self { limits, random, sites: Vec::new(), look_up_at: now, looks_up: false, failed_lookups };
        open.into_iter().for_each(|site| schedule.add(site, State::Open));
        schedule
    }

    fn add(&mut self, site: Site, state: State) {
        let backoff = Backoff::new(self.limits, self.random.u64(..));
        self.sites.push(Scheduled { site, is_listed: true, state, backoff });
    }

    /// Pauses within these limits from now on.
    pub(super) fn reconfigure(&mut self, limits: Reconnect, now: Instant) {
        if limits == self.limits {
            return;
        }
        self.limits = limits;
        self.failed_lookups.reconfigure(limits);
        for scheduled in &mut self.sites {
            scheduled.backoff.reconfigure(limits);
            if let State::Pauses { until } = &mut scheduled.state {
                *until = (*until).min(now + limits.max);
            }
        }
        self.look_up_at = self.look_up_at.min(now + look_up_every(limits));
    }

    /// Whether the name is to be looked up now. If so, one of the next two calls tells what came of it.
    pub(super) fn poll_lookup(&mut self, now: Instant) -> bool {
        let begins = self.poll_timeout().is_some_and(|at| at <= now);
        self.looks_up |= begins;
        begins
    }

    /// When the next lookup is due; `None` while one is under way.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let pauses = self.sites.iter().filter_map(|scheduled| match scheduled.state {
            State::Pauses { until } => Some(until),
            _ => None,
        });
        (!self.looks_up).then(|| pauses.fold(self.look_up_at, Instant::min))
    }

    /// The name has these sites now. Returns how many of them are more than there may be: they are not dialled.
    pub(super) fn handle_found(&mut self, found: &[Site], now: Instant) -> usize {
        self.looks_up = false;
        self.failed_lookups = Backoff::new(self.limits, self.random.u64(..));
        self.look_up_at = now + look_up_every(self.limits);
        let (found, left_out) = found.split_at(found.len().min(SITES_MAX));
        for scheduled in &mut self.sites {
            scheduled.is_listed = found.contains(&scheduled.site);
        }
        self.sites.retain(|scheduled| scheduled.is_listed || scheduled.is_in_use());
        self.end_pauses(now);
        for site in found {
            if !self.has(site) {
                self.add(site.clone(), State::Due);
            }
        }
        left_out.len()
    }

    /// The lookup failed.
    pub(super) fn handle_lookup_failed(&mut self, now: Instant) {
        self.looks_up = false;
        self.look_up_at = now + self.failed_lookups.pause();
        self.end_pauses(now);
    }

    fn end_pauses(&mut self, now: Instant) {
        for scheduled in &mut self.sites {
            if matches!(scheduled.state, State::Pauses { until } if until <= now) {
                scheduled.state = State::Due;
            }
        }
    }

    /// The next site to try. One of the next two calls tells what came of it.
    pub(super) fn poll_dial(&mut self) -> Option<Site> {
        let due = self.sites.iter_mut().find(|scheduled| scheduled.state == State::Due)?;
        due.state = State::Tried;
        Some(due.site.clone())
    }

    /// The site has a connection.
    pub(super) fn handle_opened(&mut self, site: &Site) {
        if let Some(scheduled) = self.sites.iter_mut().find(|scheduled| scheduled.site == *site) {
            scheduled.state = State::Open;
        }
    }

    /// The attempt came to nothing.
    pub(super) fn handle_failed(&mut self, site: &Site, now: Instant) {
        self.pause(site, None, now);
    }

    /// The connection that began at `since` has ended.
    pub(super) fn handle_ended(&mut self, site: &Site, since: Instant, now: Instant) {
        self.pause(site, Some(since), now);
    }

    fn pause(&mut self, site: &Site, since: Option<Instant>, now: Instant) {
        self.sites.retain(|scheduled| scheduled.is_listed || scheduled.site != *site);
        if let Some(scheduled) = self.sites.iter_mut().find(|scheduled| scheduled.site == *site) {
            since.iter().for_each(|since| scheduled.backoff.session_lasted(*since, now));
            scheduled.state = State::Pauses { until: now + scheduled.backoff.pause() };
        }
    }

    /// The sites that are dialled.
    pub(super) fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().map(|scheduled| &scheduled.site)
    }

    fn has(&self, site: &Site) -> bool {
        self.sites().any(|there| there == site)
    }
}

impl Scheduled {
    fn is_in_use(&self) -> bool {
        matches!(self.state, State::Tried | State::Open)
    }
}

/// How often a name is looked up while nothing fails.
fn look_up_every(limits: Reconnect) -> Duration {
    limits.max.max(LOOK_UP_MIN)
}

/// A name without connections that fail is not looked up more often.
const LOOK_UP_MIN: Duration = Duration::from_secs(1);
/// Most addresses of one name that are dialled.
const SITES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Reconnect = Reconnect { min: Duration::from_millis(100), max: Duration::from_secs(30) };

    fn site(number: u8) -> Site {
        Site::Tcp(([192, 0, 2, number], 6000).into())
    }

    fn dialled(schedule: &mut Schedule) -> Vec<Site> {
        std::iter::from_fn(|| schedule.poll_dial()).collect()
    }

    /// The name had these sites when it was first looked up.
    fn begun(now: Instant, numbers: &[u8]) -> Schedule {
        let mut schedule = Schedule::new(LIMITS, Vec::new(), 7, now);
        assert!(schedule.poll_lookup(now) && !schedule.poll_lookup(now));
        let sites: Vec<_> = numbers.iter().copied().map(site).collect();
        assert_eq!(schedule.handle_found(&sites, now), 0);
        assert_eq!(dialled(&mut schedule), sites);
        schedule
    }

    #[test]
    fn every_site_is_dialled_at_once_and_those_that_fail_again_after_a_lookup() {
        let now = Instant::now();
        let mut schedule = begun(now, &[1, 2]);
        schedule.handle_opened(&site(1));
        schedule.handle_failed(&site(2), now);
        let again = schedule.poll_timeout().unwrap();
        assert!((50..=100).contains(&(again - now).as_millis()));
        assert!(!schedule.poll_lookup(again - Duration::from_millis(1)));
        assert_eq!(dialled(&mut schedule), []);
        assert!(schedule.poll_lookup(again));
        assert_eq!(schedule.poll_timeout(), None);
        schedule.handle_found(&[site(1), site(2)], again);
        assert_eq!(dialled(&mut schedule), [site(2)]);
        schedule.handle_failed(&site(2), again);
        assert!(schedule.poll_timeout().unwrap() - again >= Duration::from_millis(100), "pauses double");
    }

    #[test]
    fn a_site_that_is_gone_is_left_alone_once_its_connection_ends_and_one_that_is_new_is_dialled() {
        let now = Instant::now();
        let mut schedule = begun(now, &[1, 2]);
        schedule.handle_opened(&site(1));
        schedule.handle_opened(&site(2));
        let later = now + LIMITS.max;
        assert_eq!(schedule.poll_timeout(), Some(later), "without a fault");
        assert!(schedule.poll_lookup(later));
        schedule.handle_found(&[site(2), site(3)], later);
        assert_eq!(dialled(&mut schedule), [site(3)]);
        schedule.handle_ended(&site(1), now, later);
        assert!(!schedule.has(&site(1)));
        // One that ends, and that is gone when the name is looked up before it is tried again.
        schedule.handle_ended(&site(2), now, later);
        let again = schedule.poll_timeout().unwrap();
        assert!(again <= later + LIMITS.min && schedule.poll_lookup(again));
        schedule.handle_found(&[site(3)], again);
        assert_eq!(dialled(&mut schedule), []);
        assert!(!schedule.has(&site(2)));
    }

    #[test]
    fn a_site_that_comes_back_while_its_connection_is_open_is_dialled_again_after_it() {
        let now = Instant::now();
        let mut schedule = begun(now, &[1]);
        schedule.handle_opened(&site(1));
        for found in [&[][..], &[site(1)]] {
            schedule.handle_found(found, now);
            assert_eq!(dialled(&mut schedule), []);
        }
        schedule.handle_ended(&site(1), now, now);
        schedule.handle_found(&[site(1)], now + LIMITS.min);
        assert_eq!(dialled(&mut schedule), [site(1)]);
    }

    #[test]
    fn a_lookup_that_fails_keeps_nobody_from_sites_that_are_known() {
        let now = Instant::now();
        let mut schedule = begun(now, &[1]);
        schedule.handle_failed(&site(1), now);
        let again = schedule.poll_timeout().unwrap();
        assert!(schedule.poll_lookup(again));
        schedule.handle_lookup_failed(again);
        assert_eq!(dialled(&mut schedule), [site(1)]);
        let mut nowhere = Schedule::new(LIMITS, Vec::new(), 7, now);
        let (mut at, mut lookups) = (now, 0);
        while at < now + Duration::from_secs(600) {
            assert!(nowhere.poll_lookup(at));
            nowhere.handle_lookup_failed(at);
            at = nowhere.poll_timeout().unwrap();
            lookups += 1;
        }
        assert!((20..60).contains(&lookups), "{lookups} lookups in ten minutes");
    }

    #[test]
    fn what_is_open_at_the_start_is_not_dialled_until_it_ends() {
        let now = Instant::now();
        let mut schedule = Schedule::new(LIMITS, vec![site(1)], 7, now);
        assert!(schedule.poll_lookup(now));
        schedule.handle_found(&[site(1), site(2)], now);
        assert_eq!(dialled(&mut schedule), [site(2)]);
        schedule.handle_ended(&site(1), now, now + Duration::from_secs(2));
        let again = schedule.poll_timeout().unwrap();
        assert!(schedule.poll_lookup(again));
        schedule.handle_found(&[site(1), site(2)], again);
        assert_eq!(dialled(&mut schedule), [site(1)]);
    }

    #[test]
    fn shorter_pauses_hold_at_once_and_a_name_has_only_so_many_sites() {
        let now = Instant::now();
        let mut schedule = begun(now, &[1]);
        for _ in 0..20 {
            schedule.handle_failed(&site(1), now);
        }
        let max = Duration::from_millis(200);
        schedule.reconfigure(Reconnect { min: Duration::from_millis(1), max }, now);
        assert!(schedule.poll_timeout().unwrap() <= now + max);
        let many: Vec<_> = (0..300).map(|port| Site::Tcp(([192, 0, 2, 9], port).into())).collect();
        assert_eq!(schedule.handle_found(&many, now), many.len() - SITES_MAX);
        assert_eq!(dialled(&mut schedule).len(), SITES_MAX);
    }
}
