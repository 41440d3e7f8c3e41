//! How long to wait, and when to wait no longer.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Ends waits: somebody else has failed for good.
#[derive(Default)]
pub(super) struct Stop {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    pub(super) fn set(&self) {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(super) fn is_set(&self) -> bool {
        *self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits, and says whether to go on.
    pub(super) fn sleep(&self, wait: Duration) -> bool {
        let set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(set, wait, |set| !*set);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// How long `Retry-After` asks to wait: seconds, or until a date (RFC 9110, 5.6.7 and 10.2.3).
pub(super) fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let mut words = text.trim().split([' ', ':']).skip(1);
    let day = words.next()?.parse().ok()?;
    let month = match words.next()? {
        "Jan" => time::Month::January,
        "Feb" => time::Month::February,
        "Mar" => time::Month::March,
        "Apr" => time::Month::April,
        "May" => time::Month::May,
        "Jun" => time::Month::June,
        "Jul" => time::Month::July,
        "Aug" => time::Month::August,
        "Sep" => time::Month::September,
        "Oct" => time::Month::October,
        "Nov" => time::Month::November,
        "Dec" => time::Month::December,
        _ => return None,
    };
    let date = time::Date::from_calendar_date(words.next()?.parse().ok()?, month, day).ok()?;
    let mut number = || words.next()?.parse().ok();
    let date = date.with_hms(number()?, number()?, number()?).ok()?;
    let then = SystemTime::from(date.assume_utc());
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_445_412_420);
        let wait = |text| retry_after(text, now).map(|wait| wait.as_secs_f64());
        assert_eq!(wait("3"), Some(3.0));
        assert_eq!(wait(" 0.5 "), Some(0.5));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(60.0));
        assert_eq!(wait("Wed, 21 Oct 2015 07:26:00 GMT"), Some(0.0));
        for nothing in [
            "",
            "soon",
            "-1",
            "inf",
            "nan",
            "Wed, 31 Feb 2015 07:28:00 GMT",
            "a b c",
        ] {
            assert_eq!(wait(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_stop_ends_waits() {
        let stop = Stop::default();
        assert!(stop.sleep(Duration::from_millis(1)));
        stop.set();
        assert!(!stop.sleep(Duration::from_secs(3600)));
    }
}
