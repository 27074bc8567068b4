use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A connection that closes the moment it is told to.
#[derive(Debug)]
struct Fake {
    number: usize,
    client: u64,
    used: Instant,
    stale: bool,
    _slot: Slot<Fake>,
    retired: Arc<AtomicUsize>,
}

impl Pooled for Fake {
    fn retire(self: Box<Self>) {
        self.retired.fetch_add(1, Ordering::Relaxed);
    }
    fn last_used(&self) -> Instant {
        self.used
    }
    fn last_client(&self) -> u64 {
        self.client
    }
    fn is_stale(&mut self, _: Instant, _: u64) -> bool {
        self.stale
    }
}

struct Bench {
    pool: Arc<Pool<Fake>>,
    retired: Arc<AtomicUsize>,
    made: usize,
    now: Instant,
}

impl Bench {
    fn new(budget: usize) -> Self {
        let pool = Pool::new();
        pool.set_budget(budget);
        Self { pool, retired: Arc::default(), made: 0, now: Instant::now() }
    }
    fn join(&self, user: &str) -> PoolId {
        self.pool.join(&Arc::new(PoolKey { user: user.into(), parameters: Box::default() })).0
    }
    fn open(&mut self, slot: Slot<Fake>) -> Box<Fake> {
        self.made += 1;
        Box::new(Fake {
            number: self.made,
            client: 0,
            used: self.now,
            stale: false,
            _slot: slot,
            retired: self.retired.clone(),
        })
    }
    fn connection(&mut self, id: PoolId) -> Box<Fake> {
        match self.pool.acquire(id, |_| WORTH_MOST, self.now) {
            Acquired::Connection(c) => c,
            Acquired::Slot(slot) => self.open(slot),
            Acquired::Wait(_) => panic!("the pool is full"),
        }
    }
    fn ticket(&mut self, id: PoolId) -> Ticket<Fake> {
        match self.pool.acquire(id, |_| WORTH_MOST, self.now) {
            Acquired::Wait(ticket) => ticket,
            other => panic!("did not have to wait: {other:?}"),
        }
    }
    fn back(&self, id: PoolId, c: Box<Fake>) {
        self.pool.give_back(id, c, self.now);
    }
    fn retired(&self) -> usize {
        self.retired.load(Ordering::Relaxed)
    }
}

fn granted(ticket: &mut Ticket<Fake>) -> Option<Grant<Fake>> {
    ticket.grant.try_recv().ok()
}

#[test]
fn reuse_is_lifo_and_the_budget_holds() {
    let mut b = Bench::new(2);
    let id = b.join("app");
    let (one, two) = (b.connection(id), b.connection(id));
    b.back(id, one);
    b.back(id, two);
    assert_eq!(b.connection(id).number, 2);
    assert_eq!(b.pool.stats().open, 1, "the dropped one has closed");
}

#[test]
fn waiters_are_served_in_the_order_they_came() {
    let mut b = Bench::new(1);
    let id = b.join("app");
    let one = b.connection(id);
    let (mut first, mut second) = (b.ticket(id), b.ticket(id));
    b.back(id, one);
    assert!(granted(&mut second).is_none());
    let Some(Grant::Connection(one)) = granted(&mut first) else { panic!("first was not served") };
    b.back(id, one);
    assert!(matches!(granted(&mut second), Some(Grant::Connection(_))));
}

#[test]
fn who_left_the_line_is_passed_over_and_loses_nothing() {
    let mut b = Bench::new(1);
    let id = b.join("app");
    let one = b.connection(id);
    let (first, mut second, third) = (b.ticket(id), b.ticket(id), b.ticket(id));
    drop(first);
    b.back(id, one);
    let Some(Grant::Connection(one)) = granted(&mut second) else { panic!("second was not served") };
    // Handed over, but the third goes before taking it.
    b.back(id, one);
    drop(third);
    assert_eq!(b.pool.stats(), PoolStats { open: 1, idle: 1, waiting: 0, budget: 1 });
}

#[test]
fn an_idle_connection_of_another_user_makes_room() {
    let mut b = Bench::new(1);
    let (a, other) = (b.join("a"), b.join("b"));
    let one = b.connection(a);
    b.back(a, one);
    let mut ticket = b.ticket(other);
    assert_eq!(b.retired(), 1);
    assert!(matches!(granted(&mut ticket), Some(Grant::Slot(_))), "the slot follows the close");
}

#[test]
fn a_waiter_of_another_user_is_not_starved() {
    let mut b = Bench::new(1);
    let (a, other) = (b.join("a"), b.join("b"));
    let one = b.connection(a);
    let mut foreign = b.ticket(other);
    let mut own = b.ticket(a);
    b.back(a, one);
    let Some(Grant::Connection(one)) = granted(&mut own) else { panic!("a fresh waiter is passed over") };
    let _own_again = b.ticket(a);
    b.now += PREFER_SAME_POOL;
    b.back(a, one);
    assert_eq!(b.retired(), 1);
    assert!(matches!(granted(&mut foreign), Some(Grant::Slot(_))));
}

#[test]
fn stale_connections_are_not_handed_out() {
    let mut b = Bench::new(2);
    let id = b.join("app");
    let (mut one, two) = (b.connection(id), b.connection(id));
    b.back(id, two);
    one.stale = true;
    b.back(id, one);
    assert_eq!(b.retired(), 1);
    assert_eq!(b.connection(id).number, 2);
}

#[test]
fn a_smaller_budget_closes_what_is_too_much() {
    let mut b = Bench::new(3);
    let id = b.join("app");
    let three: Vec<_> = (0..3).map(|_| b.connection(id)).collect();
    let mut three = three.into_iter();
    b.back(id, three.next().unwrap());
    b.pool.set_budget(1);
    assert_eq!(b.retired(), 1);
    b.back(id, three.next().unwrap());
    assert_eq!(b.retired(), 2);
    b.back(id, three.next().unwrap());
    assert_eq!(b.pool.stats(), PoolStats { open: 1, idle: 1, waiting: 0, budget: 1 });
}

#[test]
fn nothing_opens_before_the_budget_is_known() {
    let mut b = Bench::new(0);
    let id = b.join("app");
    let mut ticket = b.ticket(id);
    assert!(granted(&mut ticket).is_none());
    b.pool.set_budget(1);
    assert!(matches!(granted(&mut ticket), Some(Grant::Slot(_))));
    assert_eq!(b.pool.stats().open, 0, "the unused slot came back");
}

#[test]
fn the_idle_ceiling_closes_only_what_has_been_idle_long() {
    let mut b = Bench::new(3);
    let id = b.join("app");
    let mut three: Vec<_> = (0..3).map(|_| b.connection(id)).collect();
    for (at, c) in three.iter_mut().enumerate() {
        c.used = b.now + Duration::from_secs(at as u64);
    }
    three.drain(..).for_each(|c| b.pool.give_back(id, c, b.now));
    b.pool.reap(b.now + Duration::from_secs(10), 1, Duration::from_secs(9));
    assert_eq!(b.retired(), 2, "the third was used 8 s ago, and one may stay anyway");
    b.pool.reap(b.now + Duration::from_secs(60), 1, Duration::from_secs(9));
    assert_eq!(b.retired(), 2);
}

#[test]
fn a_client_finds_the_connection_it_used_last() {
    let mut b = Bench::new(2);
    let id = b.join("app");
    let (mut one, two) = (b.connection(id), b.connection(id));
    one.client = 7;
    b.back(id, one);
    b.back(id, two);
    let Acquired::Connection(found) = b.pool.acquire(id, |c| u8::from(c.client == 7), b.now) else {
        panic!("none idle")
    };
    assert_eq!(found.number, 1);
}
