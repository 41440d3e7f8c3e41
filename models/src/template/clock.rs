//! `strftime`, as much of it as chat templates use.

use std::time::SystemTime;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// `now` in UTC, written as `format` says. Unknown directives stay as they are.
pub(super) fn format(now: SystemTime, format: &str) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    let moment = Moment::at(since.map_or(0, |d| d.as_secs()));
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        match directive.and_then(|d| moment.field(d)) {
            Some(field) if unpadded => {
                let short = field.trim_start_matches('0');
                out.push_str(if short.is_empty() { "0" } else { short });
            }
            Some(field) => out.push_str(&field),
            None => {
                out.push('%');
                out.extend(unpadded.then_some('-'));
                out.extend(directive);
            }
        }
    }
    out
}

struct Moment {
    year: u64,
    month: usize,
    day: u64,
    day_of_year: u64,
    weekday: usize,
    second: u64,
}

impl Moment {
    fn at(seconds: u64) -> Self {
        let days = seconds / 86_400;
        let (mut year, mut day) = (1970, days);
        while day >= year_days(year) {
            day -= year_days(year);
            year += 1;
        }
        let day_of_year = day + 1;
        let mut month = 0;
        while day >= month_days(year, month) {
            day -= month_days(year, month);
            month += 1;
        }
        Self {
            year,
            month,
            day: day + 1,
            day_of_year,
            // 1 January 1970 was a Thursday.
            weekday: ((days + 3) % 7) as usize,
            second: seconds % 86_400,
        }
    }

    fn field(&self, directive: char) -> Option<String> {
        let (hour, minute) = (self.second / 3600, self.second / 60 % 60);
        let month = MONTHS[self.month];
        let day = DAYS[self.weekday];
        Some(match directive {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month + 1),
            'B' => month.to_owned(),
            'b' => month[..3].to_owned(),
            'd' => format!("{:02}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'A' => day.to_owned(),
            'a' => day[..3].to_owned(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{minute:02}"),
            'S' => format!("{:02}", self.second % 60),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_days(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_days(year: u64, month: usize) -> u64 {
    match month {
        1 if is_leap(year) => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64, text: &str) -> String {
        format(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds), text)
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(
            at(0, "%A %d %B %Y %H:%M:%S"),
            "Thursday 01 January 1970 00:00:00"
        );
        assert_eq!(at(951_782_399, "%Y-%m-%d"), "2000-02-28");
        assert_eq!(at(951_782_400, "%Y-%m-%d %j"), "2000-02-29 060");
        assert_eq!(
            at(1_795_350_896, "%a %b %-d %I:%M %p"),
            "Sun Nov 22 12:34 PM"
        );
        assert_eq!(at(0, "100%% %Q %-H %"), "100% %Q 0 %");
    }
}
