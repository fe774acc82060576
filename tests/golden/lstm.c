/* cell lstm
       i = sigmoid(W_i @ x + U_i @ h + b_i)
       f = sigmoid(W_f @ x + U_f @ h + b_f)
       g = tanh(W_g @ x + U_g @ h + b_g)
       o = sigmoid(W_o @ x + U_o @ h + b_o)
       c' = f * c + i * g
       h' = o * tanh(c')
*/
#include "cell.h"

static void loop0_8d36637a88c81c64(long n, long at_t, long row, long H, real *tape_t, real *y, long column0, long column1, long column2, long column3, long column4, real *after0, const real *before1, real *after1, const real *s0, const real *s1, const real *s2, const real *s3)
{
    for (long b = 0; b < n; b++) {
        real *const tape_b = tape_t + b * row;
        const real *const before1_b = before1 + b * padded(H);
        real *const after0_b = after0 + b * padded(H);
        real *const y_b = y + (at_t + b) * H;
        real *const after1_b = after1 + b * padded(H);
        for (long j = 0; j < H; j += LANES) {
            const V v_o = sigmoid(load(tape_b + column0 + j) + load(s0 + j));
            const V v_f = sigmoid(load(tape_b + column1 + j) + load(s1 + j));
            const V v_i = sigmoid(load(tape_b + column2 + j) + load(s2 + j));
            const V v_g = tanh(load(tape_b + column3 + j) + load(s3 + j));
            const V v_c_next = (v_f * load(before1_b + j)) + (v_i * v_g);
            const V v5 = tanh(v_c_next);
            const V v_h_next = v_o * v5;
            store(after0_b + j, v_h_next);
            store_part(y_b + j, v_h_next, H - j);
            store(after1_b + j, v_c_next);
            store_part(tape_b + column0 + j, v_o, H - j);
            store_part(tape_b + column1 + j, v_f, H - j);
            store_part(tape_b + column2 + j, v_i, H - j);
            store_part(tape_b + column3 + j, v_g, H - j);
            store_part(tape_b + column4 + j, v5, H - j);
        }
    }
}

static void loop1_8d36637a88c81c64(long n, long at_t, long row, long H, real *tape_t, const real *dy, long column0, long column1, long column2, long column3, long column4, real *d_after0, const real *before1, real *d_before1, real *d_after1)
{
    for (long b = 0; b < n; b++) {
        const real *const dy_b = dy + (at_t + b) * H;
        real *const d_after0_b = d_after0 + b * padded(H);
        real *const tape_b = tape_t + b * row;
        real *const d_after1_b = d_after1 + b * padded(H);
        const real *const before1_b = before1 + b * padded(H);
        real *const d_before1_b = d_before1 + b * padded(H);
        for (long j = 0; j < H; j += LANES) {
            const V v0 = load(tape_b + column4 + j);
            const V v_o = load(tape_b + column0 + j);
            const V v_f = load(tape_b + column1 + j);
            const V v_g = load(tape_b + column3 + j);
            const V v_i = load(tape_b + column2 + j);
            const V v5 = load_part(dy_b + j, H - j) + load(d_after0_b + j);
            const V v6 = (v5 * v0) * (v_o * (R(1.0) - v_o));
            const V v7 = load(d_after1_b + j) + ((v5 * v_o) * (R(1.0) - (v0 * v0)));
            const V v8 = (v7 * load(before1_b + j)) * (v_f * (R(1.0) - v_f));
            const V v9 = (v7 * v_g) * (v_i * (R(1.0) - v_i));
            const V v10 = (v7 * v_i) * (R(1.0) - (v_g * v_g));
            const V v11 = v7 * v_f;
            store_part(tape_b + column0 + j, v6, H - j);
            store_part(tape_b + column1 + j, v8, H - j);
            store_part(tape_b + column2 + j, v9, H - j);
            store_part(tape_b + column3 + j, v10, H - j);
            store(d_before1_b + j, v11);
        }
    }
}

GLUE void forward_8d36637a88c81c64(const Matrix *matrix, const long *size, void *const *at)
{
    const long T = size[0];
    const long B = size[1];
    const long entries = size[2];
    const long chunk = size[3];
    const long recording = size[4];
    const long row = size[5];
    const long H = size[6];
    const long X = size[7];
    const long H_ = padded(H);
    const long X_ = padded(X);
    const long *const starts = at[0];
    const long *const tokens = at[1];
    real *const tape = at[2];
    real * room = at[3];
    real *const y = at[4];
    const real *const x0 = at[5];  /* x */
    const real *const first0 = at[6];
    const real *const first1 = at[7];
    real *const last0 = at[8];
    real *const last1 = at[9];
    real *const history0 = at[10];  /* h */
    real *const history1 = at[11];  /* c */
    const real *const matrix0 = at[12];  /* W_o */
    const real *const matrix1 = at[13];  /* U_o */
    const real *const matrix2 = at[14];  /* W_f */
    const real *const matrix3 = at[15];  /* U_f */
    const real *const matrix4 = at[16];  /* W_i */
    const real *const matrix5 = at[17];  /* U_i */
    const real *const matrix6 = at[18];  /* W_g */
    const real *const matrix7 = at[19];  /* U_g */
    const real *const static0 = at[20];  /* b_o */
    const real *const static1 = at[21];  /* b_f */
    const real *const static2 = at[22];  /* b_i */
    const real *const static3 = at[23];  /* b_g */
    const long column0 = 0;  /* [W_o @ x + U_o @ h], then o */
    const long column1 = column0 + H;  /* [W_f @ x + U_f @ h], then f */
    const long column2 = column1 + H;  /* [W_i @ x + U_i @ h], then i */
    const long column3 = column2 + H;  /* [W_g @ x + U_g @ h], then g */
    const long column4 = column3 + H;  /* tanh(c') */
    const real *const s0 = whole(static0, H, &room);
    const real *const s1 = whole(static1, H, &room);
    const real *const s2 = whole(static2, H, &room);
    const real *const s3 = whole(static3, H, &room);
    real *const packed0 = part(&room, X * padded(4 * H));
    matrix->pack(packed0, 4, (const long[]){H, H, H, H}, X, (const real *const[]){matrix0, matrix2, matrix4, matrix6}, 1);
    real *const packed1 = part(&room, H * padded(4 * H));
    matrix->pack(packed1, 4, (const long[]){H, H, H, H}, H, (const real *const[]){matrix1, matrix3, matrix5, matrix7}, 1);
    set_rows(history0, H_, first0, B, H);
    set_rows(history1, H_, first1, B, H);
    real *const table = tokens ? part(&room, entries * row) : tape;
    for (long from = 0; from < T; from += chunk) {
        const long to = from + chunk < T ? from + chunk : T;
        const long at_from = (starts ? starts[from] : (from) * B);
        const long rows = (starts ? starts[to] : (to) * B) - at_from;
        if (!tokens || from == 0) {
            const long first = tokens ? 0 : at_from, m = tokens ? entries : rows;
            /* sums = [W_o, W_f, W_i, W_g] @ x */
            matrix->product(m, 4 * H, X, x0 + first * X, X, packed0, table + column0, row, 0);
        }
        if (tokens) for (long b = 0; b < rows; b++) {
            memcpy(tape + b * row + column0, table + tokens[at_from + b] * row + column0, 4 * H * sizeof(real));
        }
        for (long t = from; t < to; t++) {
            const long at_t = (starts ? starts[t] : (t) * B), n = (starts ? starts[t + 1] : (t + 1) * B) - at_t;
            real *const tape_t = tape + (at_t - at_from) * row;
            const real *const before0 = history0 + H_ * (recording ? (t ? B + (starts ? starts[t - 1] : (t - 1) * B) : 0) : B * (t & 1));
            real *const after0 = history0 + H_ * (recording ? B + at_t : B * (~t & 1));
            const real *const before1 = history1 + H_ * (recording ? (t ? B + (starts ? starts[t - 1] : (t - 1) * B) : 0) : B * (t & 1));
            real *const after1 = history1 + H_ * (recording ? B + at_t : B * (~t & 1));
            /* sums += [U_o, U_f, U_i, U_g] @ h */
            matrix->product(n, 4 * H, H, before0, H_, packed1, tape_t + column0, row, 1);
            loop0_8d36637a88c81c64(n, at_t, row, H, tape_t, y, column0, column1, column2, column3, column4, after0, before1, after1, s0, s1, s2, s3);
            const long going = t + 1 < T ? (starts ? starts[t + 2] : (t + 2) * B) - at_t - n : 0;
            copy_rows(last0 + going * H, H, after0 + going * H_, H_, n - going, H);
            copy_rows(last1 + going * H, H, after1 + going * H_, H_, n - going, H);
        }
    }
}

GLUE void backward_8d36637a88c81c64(const Matrix *matrix, const long *size, void *const *at)
{
    const long T = size[0];
    const long B = size[1];
    const long entries = size[2];
    const long chunk = size[3];
    const long recording = size[4];
    const long row = size[5];
    const long H = size[6];
    const long X = size[7];
    const long H_ = padded(H);
    const long X_ = padded(X);
    const long *const starts = at[0];
    const long *const tokens = at[1];
    real *const tape = at[2];
    real * room = at[3];
    real *const y = at[4];
    const real *const x0 = at[5];  /* x */
    const real *const first0 = at[6];
    const real *const first1 = at[7];
    real *const last0 = at[8];
    real *const last1 = at[9];
    real *const history0 = at[10];  /* h */
    real *const history1 = at[11];  /* c */
    const real *const matrix0 = at[12];  /* W_o */
    const real *const matrix1 = at[13];  /* U_o */
    const real *const matrix2 = at[14];  /* W_f */
    const real *const matrix3 = at[15];  /* U_f */
    const real *const matrix4 = at[16];  /* W_i */
    const real *const matrix5 = at[17];  /* U_i */
    const real *const matrix6 = at[18];  /* W_g */
    const real *const matrix7 = at[19];  /* U_g */
    const real *const static0 = at[20];  /* b_o */
    const real *const static1 = at[21];  /* b_f */
    const real *const static2 = at[22];  /* b_i */
    const real *const static3 = at[23];  /* b_g */
    const real *const dy = at[24];
    real *const dx0 = at[25];
    real *const dfirst0 = at[26];
    real *const dfirst1 = at[27];
    const real *const dlast0 = at[28];
    const real *const dlast1 = at[29];
    real *const dmatrix0 = at[30];
    real *const dmatrix1 = at[31];
    real *const dmatrix2 = at[32];
    real *const dmatrix3 = at[33];
    real *const dmatrix4 = at[34];
    real *const dmatrix5 = at[35];
    real *const dmatrix6 = at[36];
    real *const dmatrix7 = at[37];
    real *const dstatic0 = at[38];
    real *const dstatic1 = at[39];
    real *const dstatic2 = at[40];
    real *const dstatic3 = at[41];
    const long column0 = 0;  /* [W_o @ x + U_o @ h], then o */
    const long column1 = column0 + H;  /* [W_f @ x + U_f @ h], then f */
    const long column2 = column1 + H;  /* [W_i @ x + U_i @ h], then i */
    const long column3 = column2 + H;  /* [W_g @ x + U_g @ h], then g */
    const long column4 = column3 + H;  /* tanh(c') */
    const real *const s0 = whole(static0, H, &room);
    const real *const s1 = whole(static1, H, &room);
    const real *const s2 = whole(static2, H, &room);
    const real *const s3 = whole(static3, H, &room);
    real *d_after0 = part(&room, B * H_), *d_before0 = part(&room, B * H_);
    real *d_after1 = part(&room, B * H_), *d_before1 = part(&room, B * H_);
    real *const packed0 = part(&room, 4 * H * H_);
    matrix->pack(packed0, 4, (const long[]){H, H, H, H}, H, (const real *const[]){matrix1, matrix3, matrix5, matrix7}, 0);
    for (long t = T - 1; t >= 0; t--) {
        const long at_t = (starts ? starts[t] : (t) * B), n = (starts ? starts[t + 1] : (t + 1) * B) - at_t;
        real *const tape_t = tape + at_t * row;
        const real *const before0 = history0 + H_ * (recording ? (t ? B + (starts ? starts[t - 1] : (t - 1) * B) : 0) : B * (t & 1));
        real *const after0 = history0 + H_ * (recording ? B + at_t : B * (~t & 1));
        const real *const before1 = history1 + H_ * (recording ? (t ? B + (starts ? starts[t - 1] : (t - 1) * B) : 0) : B * (t & 1));
        real *const after1 = history1 + H_ * (recording ? B + at_t : B * (~t & 1));
        const long going = t + 1 < T ? (starts ? starts[t + 2] : (t + 2) * B) - at_t - n : 0;
        set_rows(d_after0 + going * H_, H_, dlast0 ? dlast0 + going * H : NULL, n - going, H);
        set_rows(d_after1 + going * H_, H_, dlast1 ? dlast1 + going * H : NULL, n - going, H);
        loop1_8d36637a88c81c64(n, at_t, row, H, tape_t, dy, column0, column1, column2, column3, column4, d_after0, before1, d_before1, d_after1);
        if (t || dfirst0) {
            matrix->product(n, H, 4 * H, tape_t + column0, row, packed0, d_before0, H_, 0);
        }
        real *const swap0 = d_after0;
        d_after0 = d_before0;
        d_before0 = swap0;
        real *const swap1 = d_after1;
        d_after1 = d_before1;
        d_before1 = swap1;
    }
    if (dfirst0)
        copy_rows(dfirst0, H, d_after0, H_, B, H);
    if (dfirst1)
        copy_rows(dfirst1, H, d_after1, H_, B, H);
    const long rows = (starts ? starts[T] : (T) * B);
    const long m = tokens ? entries : rows;
    real *const table = tokens ? part(&room, entries * row) : tape;
    if (tokens) {
        memset(table, 0, entries * row * sizeof(real));
        for (long r = 0; r < rows; r++) {
            add_row(table + tokens[r] * row + column0, tape + r * row + column0, 4 * H);
        }
    }
    if (dx0) {
        real *const packed_x0 = part(&room, 4 * H * X_);
        matrix->pack(packed_x0, 4, (const long[]){H, H, H, H}, X, (const real *const[]){matrix0, matrix2, matrix4, matrix6}, 0);
        matrix->product(m, X, 4 * H, table + column0, row, packed_x0, dx0, X, 0);
    }
    {
        const real *a[] = {table + column0, table + column1, table + column2, table + column3};
        const long outs[] = {H, H, H, H};
        real *const c[] = {dmatrix0, dmatrix2, dmatrix4, dmatrix6};
        int add[] = {0, 0, 0, 0};
        matrix->gradients(4, m, a, outs, row, x0, X, X, c, add, room);
    }
    {
        const real *a[] = {tape + column0, tape + column1, tape + column2, tape + column3};
        const long outs[] = {H, H, H, H};
        real *const c[] = {dmatrix1, dmatrix3, dmatrix5, dmatrix7};
        int add[] = {0, 0, 0, 0};
        if (!starts)
            matrix->gradients(4, rows, a, outs, row, history0, H, H_, c, add, room);
        else for (long t = 0; t < T; t++) {
            const long n = starts[t + 1] - starts[t];
            matrix->gradients(4, n, a, outs, row, history0 + (t ? B + starts[t - 1] : 0) * H_, H, H_, c, add, room);
            for (int i = 0; i < 4; i++) {
                a[i] += n * row;
                add[i] = 1;
            }
        }
    }
    if (dstatic3)
        matrix->column_sums(rows, H, tape + column3, row, dstatic3, 0);
    if (dstatic2)
        matrix->column_sums(rows, H, tape + column2, row, dstatic2, 0);
    if (dstatic1)
        matrix->column_sums(rows, H, tape + column1, row, dstatic1, 0);
    if (dstatic0)
        matrix->column_sums(rows, H, tape + column0, row, dstatic0, 0);
}
