//! `tojson` as Python's `json.dumps` writes it, without escaping what is not ASCII.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};

pub(super) fn python(value: &Value, options: &Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    // Accepted for templates that pass transformers' defaults.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let indent = indent
        .filter(|indent| !indent.is_none())
        .map(usize::try_from)
        .transpose()?;
    let json = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))?;
    let mut writer = Writer {
        out: String::new(),
        indent: indent.map(|width| width.min(16)),
        sort_keys: sort_keys.unwrap_or(false),
    };
    writer.value(&json, 0);
    Ok(Value::from(writer.out))
}

struct Writer {
    out: String,
    indent: Option<usize>,
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, value: &serde_json::Value, depth: usize) {
        match value {
            serde_json::Value::Number(number) => self.out.push_str(&number_text(number)),
            serde_json::Value::Array(items) => {
                let items = items.iter().map(|item| (None, item));
                self.items('[', items, ']', depth);
            }
            serde_json::Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().map(|(k, v)| (Some(k), v)).collect();
                if self.sort_keys {
                    fields.sort_by_key(|(key, _)| *key);
                }
                self.items('{', fields.into_iter(), '}', depth);
            }
            // Null, truth values and texts are the same in both languages.
            same => self.out.push_str(&same.to_string()),
        }
    }

    fn items<'a>(
        &mut self,
        open: char,
        items: impl ExactSizeIterator<Item = (Option<&'a String>, &'a serde_json::Value)>,
        close: char,
        depth: usize,
    ) {
        self.out.push(open);
        let empty = items.len() == 0;
        for (index, (key, value)) in items.enumerate() {
            if index > 0 {
                let separator = if self.indent.is_some() { "," } else { ", " };
                self.out.push_str(separator);
            }
            self.line(depth + 1);
            if let Some(key) = key {
                let key = serde_json::Value::from(key.as_str());
                self.out.push_str(&key.to_string());
                self.out.push_str(": ");
            }
            self.value(value, depth + 1);
        }
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
    }

    fn line(&mut self, depth: usize) {
        if let Some(width) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', width * depth));
        }
    }
}

/// Python writes `1e-07` and `1e+16` where Rust writes `1e-7` and `1e16`.
fn number_text(number: &serde_json::Number) -> String {
    let text = number.to_string();
    let Some((digits, exponent)) = text.split_once('e') else {
        return text;
    };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent.trim_start_matches('+')),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_python_does() {
        for (value, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e-7, "1e-07"),
            (1.5e300, "1.5e+300"),
            (123456.5, "123456.5"),
        ] {
            let number = serde_json::Number::from_f64(value).unwrap();
            assert_eq!(number_text(&number), text);
        }
        assert_eq!(number_text(&serde_json::Number::from(-3)), "-3");
    }
}
