//! Values as PostgreSQL writes them, so that expected answers can be read off its documentation.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Float32Type, Float64Type, IntervalMonthDayNanoType, IntervalUnit, TimeUnit, TimestampMicrosecondType,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};

/// Every row of a batch as texts; NULL is `NULL`, an empty text is `(empty)`.
pub(crate) fn rows(batch: &RecordBatch) -> Vec<Vec<String>> {
    let columns: Vec<Vec<String>> =
        batch.columns().iter().map(|column| (0..batch.num_rows()).map(|row| cell(column, row)).collect()).collect();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| column[row].clone()).collect()).collect()
}

fn cell(column: &ArrayRef, row: usize) -> String {
    if column.is_null(row) {
        return "NULL".to_owned();
    }
    let text = value(column, row);
    if text.is_empty() { "(empty)".to_owned() } else { text.replace('\n', "\\n") }
}

fn value(column: &ArrayRef, row: usize) -> String {
    match column.data_type() {
        DataType::Float32 => float(
            f64::from(column.as_primitive::<Float32Type>().value(row)),
            &column.as_primitive::<Float32Type>().value(row).to_string(),
        ),
        DataType::Float64 => {
            let number = column.as_primitive::<Float64Type>().value(row);
            float(number, &number.to_string())
        }
        DataType::Binary => format!("\\x{}", hex(column.as_binary::<i32>().value(row))),
        DataType::FixedSizeBinary(16) => {
            let hex = hex(column.as_fixed_size_binary().value(row));
            format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
        }
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => {
            let at = column.as_primitive::<TimestampMicrosecondType>().value_as_datetime(row);
            at.map(|at| format!("{}+00", at.format("%Y-%m-%d %H:%M:%S%.f")))
                .unwrap_or_else(|| "out of range".to_owned())
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let value = column.as_primitive::<IntervalMonthDayNanoType>().value(row);
            interval(value.months, value.days, value.nanoseconds)
        }
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(row);
            let texts: Vec<String> = (0..items.len()).map(|item| element(&items, item)).collect();
            format!("{{{}}}", texts.join(","))
        }
        _ => {
            let options = FormatOptions::default()
                .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
                .with_datetime_format(Some("%Y-%m-%d %H:%M:%S%.f"))
                .with_time_format(Some("%H:%M:%S%.f"));
            match ArrayFormatter::try_new(column.as_ref(), &options) {
                Ok(formatter) => formatter.value(row).try_to_string().unwrap_or_else(|error| error.to_string()),
                Err(error) => error.to_string(),
            }
        }
    }
}

fn element(items: &ArrayRef, item: usize) -> String {
    if items.is_null(item) {
        return "NULL".to_owned();
    }
    let text = value(items, item);
    let quoted = matches!(items.data_type(), DataType::Utf8)
        && (text.is_empty() || text.eq_ignore_ascii_case("null") || text.contains([',', '{', '}', '"', '\\', ' ']));
    if quoted { format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")) } else { text }
}

/// Very large and very small numbers take an exponent.
fn float(number: f64, shortest: &str) -> String {
    if number.is_nan() {
        "NaN".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()
    } else if number != 0.0 && !(1e-4..1e15).contains(&number.abs()) {
        let text = format!("{number:e}");
        match text.split_once('e') {
            Some((digits, exponent)) => match exponent.strip_prefix('-') {
                Some(exponent) => format!("{digits}e-{exponent:0>2}"),
                None => format!("{digits}e+{exponent:0>2}"),
            },
            None => text,
        }
    } else {
        shortest.to_owned()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn interval(months: i32, days: i32, nanoseconds: i64) -> String {
    let mut parts = Vec::new();
    let mut push = |count: i32, one: &str, many: &str| {
        if count != 0 {
            parts.push(format!("{count} {}", if count == 1 { one } else { many }));
        }
    };
    push(months / 12, "year", "years");
    push(months % 12, "mon", "mons");
    push(days, "day", "days");
    let micros = nanoseconds / 1_000;
    if micros != 0 || parts.is_empty() {
        let sign = if micros < 0 { "-" } else { "" };
        let micros = micros.unsigned_abs();
        let seconds = micros / 1_000_000;
        let fraction = match micros % 1_000_000 {
            0 => String::new(),
            rest => format!(".{rest:06}").trim_end_matches('0').to_owned(),
        };
        parts.push(format!("{sign}{:02}:{:02}:{:02}{fraction}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_like_postgresql() {
        assert_eq!(float(1.0, "1"), "1");
        assert_eq!(float(1e300, "x"), "1e+300");
        assert_eq!(float(1.5e-7, "x"), "1.5e-07");
        assert_eq!(float(f64::NEG_INFINITY, "x"), "-Infinity");
        assert_eq!(interval(14, 3, 3_723_500_000_000), "1 year 2 mons 3 days 01:02:03.5");
        assert_eq!(interval(0, 0, 0), "00:00:00");
        assert_eq!(interval(0, 0, -1_000_000_000), "-00:00:01");
    }
}
