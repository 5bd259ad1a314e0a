//! Retries of transient failures with exponential backoff.

use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// How often a request is retried, and after which pauses.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// The total number of attempts.
    pub attempts: u32,
    /// The first pause; each further one is twice as long.
    pub pause: Duration,
    /// Upper bound on a pause; a longer `Retry-After` fails the request.
    pub longest: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 5, pause: Duration::from_millis(500), longest: Duration::from_secs(60) }
    }
}

impl Retry {
    /// The pause after the given number of failures (from 1), with 25% jitter so that many nodes do
    /// not retry at the same time.
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let doubled = self.pause.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let percent = 75 + clock.subsec_nanos() % 50;
        (doubled.min(self.longest) * percent / 100).min(self.longest)
    }
}

/// The delay from `Retry-After`, which is in seconds or a date.
pub(super) fn after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let retry =
            Retry { attempts: 9, pause: Duration::from_secs(1), longest: Duration::from_secs(6) };
        for (failures, least, most) in
            [(1, 0.75, 1.25), (2, 1.5, 2.5), (3, 3.0, 5.0), (4, 4.5, 6.0), (99, 4.5, 6.0)]
        {
            let pause = retry.pause(failures).as_secs_f64();
            assert!((least..=most).contains(&pause), "{failures}: {pause}");
        }
    }

    #[test]
    fn retry_after() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("Fri, 01 Jan 2021 00:00:00 GMT"), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!(of(&later).is_some_and(|it| it > Duration::from_secs(90)));
        assert_eq!(of("soon"), None);
        assert_eq!(after(&HeaderMap::new()), None);
    }
}
