// What both stories in TypeScript share: the site, a check, and what the customer does.

function fromEnvironment(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

export const apiUrl = fromEnvironment("API_URL");
export const headers = { Authorization: fromEnvironment("API_AUTHORIZATION") };

/** Throw unless both have the same JSON. */
export function same(actual: unknown, expected: unknown, what: string): void {
  const [is, should] = [JSON.stringify(actual), JSON.stringify(expected)];
  if (is !== should) throw new Error(`${what}: ${is} instead of ${should}`);
}

/** Return a value that has to be there. */
export function present<T>(value: T | null | undefined, what: string): T {
  if (value === null || value === undefined) throw new Error(`${what} is missing`);
  return value;
}

/** Connect a number as the customer does: from the personal link to Kapso's page, and back. */
export async function connectNumber(connectUrl: string, hostedUrl: string): Promise<void> {
  const leaving = await fetch(connectUrl, { method: "POST" });
  same((await leaving.text()).includes(hostedUrl), true, "that the personal link leads to Kapso");
  const form = new URLSearchParams({ outcome: "connect" });
  const last = await fetch(hostedUrl, { method: "POST", body: form });
  same([last.status, new URL(last.url).host], [200, new URL(connectUrl).host], "the last page");
}

/** Ask until `isDone`, for ten seconds at most; return the last answer. */
export async function poll<T>(ask: () => Promise<T>, isDone: (answer: T) => boolean): Promise<T> {
  const deadline = Date.now() + 10_000;
  for (;;) {
    const answer = await ask();
    if (isDone(answer) || Date.now() > deadline) return answer;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Return the cursor in the URL of the next page, or undefined on the last page. */
export function cursorOf(next: string | null): string | undefined {
  return (next && new URL(next).searchParams.get("cursor")) || undefined;
}
