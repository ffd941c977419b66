// How the functions that orval generates send their requests.
import { apiUrl, headers } from "../site.js";

export async function fetchFromSite<T>(path: string, options: RequestInit): Promise<T> {
  const response = await fetch(apiUrl + path, {
    ...options,
    headers: { ...headers, ...Object.fromEntries(new Headers(options.headers)) },
  });
  const text = await response.text();
  const data: unknown = text ? JSON.parse(text) : undefined;
  return { status: response.status, headers: response.headers, data } as T;
}
