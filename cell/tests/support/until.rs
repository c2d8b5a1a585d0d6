//! Waiting for a condition.

use std::time::Duration;

use cellbus_bus::Env;

/// Looks until it holds; gives the state in which it does.
pub(crate) async fn until<T: std::fmt::Debug>(
    env: &Env,
    what: &str,
    mut state: impl FnMut() -> T,
    holds: impl Fn(&T) -> bool,
) -> T {
    let began = env.mono();
    loop {
        let now = state();
        if holds(&now) {
            return now;
        }
        assert!(env.mono().since(began) < Duration::from_secs(60), "{what}: still {now:?}");
        env.sleep(Duration::from_millis(20)).await;
    }
}
