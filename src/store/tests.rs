use super::*;
use crate::control::key_store::Key;
use crate::control::lease::Answer;
use std::num::NonZeroU32;
use tokio::time::Instant;

const WAIT: Duration = Duration::from_millis(5);

fn settings() -> Settings {
    Settings {
        address: Address::Unix("/nowhere/redis.sock".into()),
        database: 0,
        username: None,
        password: None,
        ca: None,
        prefix: "test".into(),
        secret: None,
        wait: WAIT,
        instances: 2,
    }
}

/// A store that nobody talks with but the test.
fn store() -> Arc<Store> {
    Arc::new(Store::new(&settings(), &Registry::new()).expect("no TLS"))
}

fn shared(store: &Arc<Store>, burst: u32, max_keys: usize) -> Shared {
    let burst = NonZeroU32::new(burst).expect("positive");
    let rule = Rule { name: "app:r".into(), step: Duration::from_secs(1), burst, max_keys };
    Shared::new(store, rule, &[("route", "app"), ("limit", "r")])
}

fn digest(_: &Store) -> Digest {
    Digest::default()
}

/// What was asked since the last look.
fn asked(store: &Store) -> Vec<Note> {
    let mut idle = store.idle.lock().unwrap();
    let (_, notes) = idle.as_mut().expect("it was not started");
    std::iter::from_fn(|| notes.try_recv().ok()).collect()
}

fn up(store: &Store) {
    store.common.is_there();
}

fn answer(store: &Store, given: u32, room: u32) {
    for note in asked(store) {
        note.limit.question(note.key).expect("a key that somebody waits for");
        note.limit.answer(note.key, Answer { given, room, wait: 1_000_000_000 });
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_store_each_goes_by_its_share() {
    let store = store();
    let shared = shared(&store, 10, 1000);
    let mut allowed = 0;
    for _ in 0..100 {
        assert!(shared.is_known(Key(1), digest), "nobody is asked");
        allowed += u32::from(shared.take(Key(1)).is_ok());
    }
    assert_eq!(allowed, 5);
    assert_eq!(shared.take(Key(1)), Err(Duration::from_secs(2)), "half of the rate");
    assert!(asked(&store).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_answer_and_goes_by_it() {
    let store = store();
    up(&store);
    let shared = shared(&store, 10, 1000);
    assert!(!shared.is_known(Key(1), digest) && !shared.is_known(Key(1), digest));
    let (began, waiting) = (Instant::now(), shared.answered(Key(1), Instant::now()));
    let store_says = async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        answer(&store, 2, 0);
    };
    tokio::join!(waiting, store_says);
    assert_eq!(began.elapsed().as_millis(), 2);
    assert!(shared.take(Key(1)).is_ok() && shared.take(Key(1)).is_ok());
    assert!(shared.is_known(Key(1), digest), "it is known that there is nothing");
    assert_eq!(shared.take(Key(1)), Err(Duration::from_secs(1)));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!shared.is_known(Key(1), digest));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_late_leaves_it_to_the_share_which_is_owed() {
    let store = store();
    up(&store);
    let shared = shared(&store, 10, 1000);
    assert!(!shared.is_known(Key(1), digest));
    let began = Instant::now();
    shared.answered(Key(1), began).await;
    assert_eq!(began.elapsed(), WAIT);
    let allowed = (0..20).filter(|_| shared.take(Key(1)).is_ok()).count();
    assert_eq!(allowed, 5);
    let note = asked(&store).pop().expect("asked once");
    let (_, ask) = note.limit.question(note.key).expect("a key");
    assert_eq!(ask.owed, 5);
}

#[tokio::test(start_paused = true)]
async fn who_leaves_takes_nothing_along() {
    let store = store();
    up(&store);
    let shared = shared(&store, 10, 1000);
    assert!(!shared.is_known(Key(1), digest));
    drop(Box::pin(shared.answered(Key(1), Instant::now())));
    assert!(tokio::time::timeout(Duration::from_millis(1), shared.answered(Key(1), Instant::now())).await.is_err());
    answer(&store, 1, 9);
    assert!(shared.is_known(Key(1), digest));
    assert_eq!(shared.take(Key(1)).map(|room| room.remaining), Ok(9), "the token is there for the next");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_told_that_the_store_went_away() {
    let store = store();
    up(&store);
    let shared = shared(&store, 10, 1000);
    assert!(!shared.is_known(Key(1), digest));
    let began = Instant::now();
    let goes = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        store.common.goes_away(&Failure::Late);
        store.common.limits().iter().for_each(|limit| limit.all_unanswered());
    };
    tokio::join!(shared.answered(Key(1), began), goes);
    assert_eq!(began.elapsed().as_millis(), 1);
    assert!(shared.take(Key(1)).is_ok(), "by the share");
}

#[tokio::test(start_paused = true)]
async fn keys_and_asks_are_bounded_and_idle_keys_go() {
    let store = store();
    up(&store);
    let shared = shared(&store, 10, 160);
    for round in 0..1000_u64 {
        for shard in 0..16_u64 {
            let _ = shared.is_known(Key(shard << 60 | round), digest);
        }
    }
    let limit = store.common.limits().pop().expect("one");
    assert_eq!(limit.keys(), 160);
    assert!(shared.is_known(Key(999), digest) && shared.take(Key(999)).is_ok(), "one without a lease has the share");
    answer(&store, 2, 8);
    let big = self::shared(&store, 10, 1_000_000);
    let unknown = (0..2 * ASKS as u64).filter(|key| !big.is_known(Key(key.rotate_left(60)), digest)).count();
    assert_eq!((unknown, asked(&store).len()), (ASKS, ASKS), "who cannot ask goes by the share at once");

    tokio::time::advance(Duration::from_secs(2)).await;
    let mut said = Vec::new();
    limit.sweep(&mut said, 100);
    assert_eq!((limit.keys(), said.len()), (60, 100), "as many as are said at once");
    assert!(said.iter().all(|(_, ask)| ask.owed == -2 && ask.want == 0));
    limit.sweep(&mut said, 1000);
    assert_eq!((limit.keys(), said.len()), (0, 160));
}

#[tokio::test(start_paused = true)]
async fn who_waits_while_nobody_can_ask_goes_on() {
    let store = store();
    up(&store);
    let shared = shared(&store, 10, 1_000_000);
    assert!(!shared.is_known(Key(1), digest));
    while store.common.asks.capacity() > 0 {
        let _ = shared.is_known(Key(store.common.asks.capacity() as u64 + 9), digest);
    }
    let limit = store.common.limits().pop().expect("one");
    let began = Instant::now();
    let refused = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        limit.unanswered(1, None);
    };
    tokio::join!(shared.answered(Key(1), began), refused);
    assert_eq!(began.elapsed().as_millis(), 1);
    assert!(shared.take(Key(1)).is_ok(), "by the share");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_ends_late_does_not_hide_the_one_in_force() {
    let registry = Registry::new();
    let [before, store] = [(), ()].map(|()| Store::new(&settings(), &registry).expect("no TLS"));
    up(&before);
    up(&store);
    drop(before);
    let up = || registry.encode().contains("headworks_store_up 1\n");
    let (far, near) = tokio::io::duplex(1 << 10);
    let mut session = session::Session::over(&store.common, wire::Wire::over(near));
    let says = async {
        let (_read, mut write) = tokio::io::split(far);
        tokio::io::AsyncWriteExt::write_all(&mut write, b":2\r\n").await.expect("room");
    };
    let (beat, ()) = tokio::join!(session.beat(), says);
    beat.expect("a reply");
    assert!(up());
}

#[test]
fn a_key_is_told_by_nothing_but_its_hash() {
    let plain = store();
    let secret = Settings { secret: Some(Password::new("salt")), ..settings() };
    let salted = Store::new(&secret, &Registry::new()).expect("no TLS");
    assert_eq!(plain.digest(b"key"), store().digest(b"key"), "every instance finds the same");
    assert_ne!(plain.digest(b"key"), plain.digest(b"kez"));
    assert_ne!(plain.digest(b"key"), salted.digest(b"key"));
    let key = plain.common.key("app:r", &plain.digest(b"key"));
    assert!(key.starts_with("test:limit:app:r:") && key.len() == "test:limit:app:r:".len() + 32, "{key}");
    assert!(!format!("{salted:?}").contains("salt"));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_nothing_or_too_much_is_away() {
    use tokio::io::AsyncWriteExt as _;
    let (mut far, near) = tokio::io::duplex(1 << 20);
    let mut wire = wire::Wire::over(near);
    far.write_all(b"+PO").await.unwrap();
    assert!(matches!(wire.hear().await, Err(Failure::Late)));
    let (mut far, near) = tokio::io::duplex(1 << 20);
    let mut wire = wire::Wire::over(near);
    far.write_all(b"+PONG\r\n-ERR no\r\n+").await.unwrap();
    assert_eq!(wire.hear().await.expect("a reply"), resp::Reply::Simple("PONG".into()));
    assert!(matches!(wire.hear().await, Err(Failure::Said(text)) if text == "ERR no"));
    far.write_all(&[b'x'; 8192]).await.unwrap();
    assert!(matches!(wire.hear().await, Err(Failure::Malformed)));
    let (far, near) = tokio::io::duplex(64);
    drop(far);
    assert!(matches!(wire::Wire::over(near).hear().await, Err(Failure::Io(_))));
}
