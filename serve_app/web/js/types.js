/**
 * What the API answers, as far as the pages use it.
 *
 * @typedef {{code: string, title: string, detail: string, status: number, request_id: string, details: Record<string, any>}} Problem
 * @typedef {{
 *   id: string, file_name: string, folder: string, size_bytes: number, format: string, width_px: number, height_px: number,
 *   taken_at: string, taken_local: string | null, taken_offset_min: number | null, camera: string | null, lens: string | null,
 *   latitude: number | null, longitude: number | null, altitude_m: number | null, tags: string[], face_count: number,
 *   created_at: string, updated_at: string
 * }} Photo
 * @typedef {{
 *   bbox: number[], landmarks: number[][], detection_score: number, crop: string | null, attributes: any, embedding?: number[]
 * }} Face  A face of a picture that was sent.
 * @typedef {{width_px: number, height_px: number, format: string, rotation_deg: number}} PictureSize
 * @typedef {{match: number | null, suggest: number | null, far: number | null, frr: number | null, dataSet: string | null}} Point
 *
 * @typedef {{
 *   id: string, name: string, external_id: string | null, face_count: number, photo_count: number, hidden: boolean,
 *   founded_by: "user" | "machine", cover_face_id: string | null
 * }} Person
 * @typedef {{
 *   id: string, photo_id: string | null, person_id: string | null, person_name: string | null, bbox: number[] | null,
 *   landmarks: number[][] | null, decided_by: "user" | "machine", hidden: boolean, thumbnail_url: string | null,
 *   unassigned: {code: string, message: string} | null
 * }} LibraryFace
 * @typedef {{
 *   id: string, at: string, actor: string, action: string, person_ids: string[], face_count: number,
 *   persons: {person_id: string, before: any, after: any}[], undoes: string | null, undone_by: string | null
 * }} JournalEntry
 * @typedef {{
 *   job_id: string, kind: string, state: "queued" | "running" | "done" | "failed" | "cancelled", automatic: boolean,
 *   progress: {total: number, done: number, failed: number, skipped: number, cancelled: number, remaining: number,
 *     rate_per_s: number | null, eta_s: number | null},
 *   delayed: {code: string, detail: string} | null, created_at: string, started_at: string | null, finished_at: string | null
 * }} Job
 *
 * @typedef {{view: string, rest: string[], query: URLSearchParams}} Place  Where the address leads.
 * @typedef {{title: string, element: HTMLElement, enter: (place: Place) => void, leave: () => void}} View
 *
 * @typedef {{
 *   api: import("./api.js").Api, pictures: import("./pictures.js").Pictures, router: import("./router.js").Router,
 *   toasts: import("./components/toasts.js").Toasts, session: import("./session.js").Session
 * }} App  What views are given.
 */

export {};
